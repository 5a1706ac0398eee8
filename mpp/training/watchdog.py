"""The clock over the steps of several processes: one that waits too long says where it stands, and ends.

Only the waiting for other processes is timed. While this process or another one is busy with data, a save or an
evaluation the clock stands still: those have limits of their own.
"""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import Field

from mpp.config import config
from mpp.errors import HangError
from mpp.training.peers import CONTINUE, Peers

_STEP = "a step"
_TICK = 0.2  # seconds between looks at the clock


@config
class Timeouts:
    """How long several processes wait for each other before they end with exit code 6."""

    first_step: float = Field(300.0, gt=0, description="seconds that a micro-batch of the first step may take")
    step: float = Field(100.0, gt=0, description="seconds that a micro-batch may take after that, data apart")
    pause: float = Field(
        1800.0, gt=0, description="seconds that what is between steps may take: opening the data, a save, an evaluation"
    )


class Watchdog:
    """Ends this process where nothing goes on; with one process it does nothing.

    ``samples(step)`` names the samples of a step (from 0) of this process.
    """

    def __init__(self, peers: Peers, timeouts: Timeouts, samples: Callable[[int], str]) -> None:
        self._peers, self._timeouts, self._samples = peers, timeouts, samples
        self._step: int | None = None
        self._first: int | None = None
        self._silence = timeouts.first_step
        self._ended = threading.Event()
        self.pause("opening the data", timeouts.pause)
        if peers.world > 1:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step(self, step: int) -> None:
        """Say that step ``step`` goes on: the clock begins anew."""
        self._first = step if self._first is None else self._first
        self._step = step
        limit = self._timeouts.first_step if step == self._first else self._timeouts.step
        self._now = (_STEP, limit, time.monotonic())
        self._silence = limit
        self._peers.busy = False

    def pause(self, what: str, limit: float) -> None:
        """Say that this process is now busy with something else than a step, for at most ``limit`` seconds."""
        self._peers.busy = True
        self._now = (what, limit, time.monotonic())

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Stop the clock for what happens between steps."""
        self.pause(what, self._timeouts.pause)
        yield
        self._now = (_STEP, self._timeouts.step, time.monotonic())
        self._peers.busy = False

    def close(self) -> None:
        """End the watch."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_TICK):
            what, limit, since = self._now
            silent = self._peers.silent(self._silence)
            if self._peers.lost is not None:
                continue  # and the peers end this process
            if silent:
                self._expire(f"no sign of life for {self._silence:g} s from {', '.join(silent)}")
            elif what == _STEP and self._peers.others_busy():
                self._now = (what, limit, time.monotonic())
            elif time.monotonic() - since > limit:
                self._expire(f"{what} did not go on within {limit:g} s")

    def _expire(self, what: str) -> None:
        rank, world = self._peers.rank, self._peers.world
        where = "" if self._step is None else f" at step {self._step + 1}, {self._samples(self._step)}"
        print(f"stacks of process {rank}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        error = HangError(
            f"process {rank} of {world}{where}: {what}",
            fix=f"look at the stacks; timeouts.step=SECONDS (or first_step, pause) waits for longer; {CONTINUE}",
        )
        print(f"error: {error}", file=sys.stderr, flush=True)
        self._peers.exit_now(what)
