"""Signals that ask a run to stop: it saves at the next agreed step and ends with exit code 143."""

import os
import select
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from mpp.errors import Stopped
from mpp.processes import STOP_SIGNALS

SECONDS_TO_A_STEP = 20.0  # that a run asked to stop has to come to the end of its step; then it ends without saving
_TICK = 0.25  # seconds between looks at the launcher


class StopSignals:
    """While open, remember the first stop signal (or the death of the launcher) instead of dying of it.

    A second signal ends the process at once. Both are noticed by a thread, because Python's handlers have to wait
    where the main thread waits for a device or for another process.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        # Only a launcher's death matters: a run in the background outlives its shell.
        launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched else None
        self._old: dict[signal.Signals, Any] = {}
        self._handled, self._deadline = 0, float("inf")

    def __enter__(self) -> "StopSignals":
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        for number in STOP_SIGNALS:
            self._old[number] = signal.signal(number, self._handle)
        self._old_fd = signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._waking.close()
        self._thread.join()
        self._woken.close()

    def ask(self, why: str) -> None:
        """Ask the run to stop, as a signal does."""
        if self.received is None:
            self.received = why
            self._deadline = time.monotonic() + SECONDS_TO_A_STEP

    def taken_up(self) -> None:
        """Say that the run is stopping, and may now take its time to save."""
        self._deadline = float("inf")

    def check(self) -> None:
        """Raise ``Stopped`` where a stop was asked for; for one process alone, while there is nothing to save."""
        if self.received is not None:
            raise Stopped(f"stopped by {self.received}, nothing to save yet", fix="the same command begins again")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        self._count(number, self._handled)

    def _count(self, number: int, count: int) -> None:
        if count > 1:
            os._exit(128 + number)
        self.ask(signal.Signals(number).name)

    def _watch(self) -> None:
        count = 0
        while True:
            if select.select([self._woken], [], [], _TICK)[0]:
                numbers = self._woken.recv(64)
                if not numbers:
                    return
                for number in numbers:
                    if number in STOP_SIGNALS:
                        count += 1
                        self._count(number, count)
            if self._launcher not in (None, os.getppid()):
                self.ask("the launcher's end")
            if time.monotonic() > self._deadline:
                print(
                    f"error: stopped by {self.received}; the step did not end in {SECONDS_TO_A_STEP:g} s, "
                    "what was saved before stands\n  fix: the same command continues",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(Stopped.exit_code)


class Agreement:
    """Whether any process was asked to stop, known to all at the same step and without waiting for each other.

    What every process says at a step is added up while the step is computed, and read at the next one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        several = accelerator.num_processes > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if several else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def reached(self, asked: bool) -> bool:
        """Say whether this process was ``asked`` to stop and return whether all stop; all call this at each step."""
        if self._group is None:
            return asked
        said = torch.tensor(int(asked))
        now: tuple[Any, torch.Tensor] = (torch.distributed.all_reduce(said, group=self._group, async_op=True), said)
        work, total = self._asked or now  # at the first step all wait for each other anyway
        self._asked = now
        work.wait()
        return bool(total)

    def close(self) -> None:
        """Wait for what is under way: a process that leaves earlier breaks the others' sums."""
        if self._asked is not None:
            self._asked[0].wait(timedelta(seconds=10))
            self._asked = None
