"""Signals that ask a run to stop: it saves at the next agreed step and ends with exit code 143."""

import os
import signal
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from mpp.processes import STOP_SIGNALS


class StopSignals:
    """While open, remember the first stop signal (or the death of the launcher) instead of dying of it.

    A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        # Only a launcher's death matters: a run in the background outlives its shell.
        launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched else None
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether any process was asked to stop; every process must call this at the same step."""
        if self._launcher not in (None, os.getppid()) and self.received is None:
            self.received = "the launcher is gone"
        if accelerator.num_processes == 1:
            return self.received is not None
        asked = torch.tensor(int(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number).name
