"""Steps whose loss or gradient is not finite: found on all processes alike, skipped, counted; and losses that leap.

One such update would make every weight, and AdamW's moments for ever, not a number. What is found stays on the device
until someone reads it, so that a GPU is not waited for.
"""

import math
from collections import deque
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mpp.errors import NumericsError

IN_A_ROW = 3  # skipped steps that end a run


class Judged(NamedTuple):
    """A step (counted from 1, as in metrics.jsonl), its loss over all processes and its gradient's norm."""

    step: int
    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class FiniteGuard:
    """Judges the steps of a trainer. ``in_a_row`` and ``since_log`` count skipped steps that have been read."""

    def __init__(self, accelerator: Accelerator, optimizer: Optimizer) -> None:
        self.accelerator, self.in_a_row, self.since_log = accelerator, 0, 0
        self._optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper has no found_inf
        self._unread: list[tuple[int, Tensor]] = []

    def judge(self, step: int, losses: list[Tensor], norm: Tensor) -> Tensor:
        """Return 1.0 where step ``step`` (from 0) must be skipped, else 0.0, the same on all processes.

        ``losses`` [] are those of the micro-batches here, ``norm`` [] that of the averaged gradient.
        """
        own = torch.stack([torch.stack(losses).float().mean(), norm.float()])
        both = self.accelerator.reduce(own, reduction="mean")  # not finite anywhere: not finite everywhere
        self._unread.append((step + 1, both))
        return (~torch.isfinite(both).all()).float()

    def update(self, optimizer: Optimizer, skip: Tensor) -> None:
        """Make the optimizer's step unless ``skip`` says 1.0: then weights, moments and step counts stay.

        A fused optimizer on a GPU looks at ``skip`` itself (as for GradScaler), others have it read here.
        """
        groups = self._optimizer.param_groups
        # Fused SGD that skips its very first step goes on from a momentum that was never written.
        aware = skip.is_cuda and all(group.get("fused") and "betas" in group for group in groups)
        if aware and not any(isinstance(weight, DTensor) for group in groups for weight in group["params"]):
            self._optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        elif not bool(skip):
            optimizer.step()

    def read(self) -> list[Judged]:
        """Return the steps since the last call, and count those skipped; waits for the device."""
        if not self._unread:
            return []
        rows = torch.stack([values for _, values in self._unread]).tolist()
        judged = [Judged(step, *row) for (step, _), row in zip(self._unread, rows, strict=True)]
        self._unread.clear()
        return judged

    def count(self, judged: Judged) -> bool:
        """Count a step that was read; return whether it is the last of too many skipped in a row."""
        self.in_a_row = 0 if judged.finite else self.in_a_row + 1
        self.since_log += not judged.finite
        return self.in_a_row >= IN_A_ROW

    def state(self) -> dict[str, int]:
        """Return what a checkpoint has to keep, once all steps are read."""
        return {"in_a_row": self.in_a_row, "since_log": self.since_log}

    def resume(self, state: dict[str, int]) -> None:
        """Go on from the state of a checkpoint; an empty one is that of the beginning."""
        self.in_a_row, self.since_log = state.get("in_a_row", 0), state.get("since_log", 0)


def gradient_norm(task: nn.Module) -> Tensor:
    """Return the norm [] of the gradient of all parameters together."""
    norm = get_total_norm([weight.grad for weight in task.parameters() if weight.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def not_finite(judged: Judged, fix: str = "") -> NumericsError:
    """Return the error that ends a run at a step."""
    what = "loss" if not math.isfinite(judged.loss) else "gradient"
    advice = "a lower learning rate, clip=1, or precision=fp32"
    return NumericsError(f"the {what} is not finite at step {judged.step}", fix=f"{fix}; {advice}" if fix else advice)


class Spikes:
    """Losses that leap: more than ``SIGMA`` standard deviations above the mean of the last ``WINDOW`` steps."""

    WINDOW, SIGMA = 128, 6.0

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=self.WINDOW)
        self._high = False

    def begins(self, loss: float) -> str | None:
        """Take the loss of the next step; return what to say where a spike begins with it."""
        said = None
        if len(self._last) == self.WINDOW and math.isfinite(loss):
            mean = math.fsum(self._last) / self.WINDOW
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._last) / self.WINDOW)
            high = loss > mean + self.SIGMA * deviation
            if high and not self._high:
                said = f"loss {loss:.6g} is {self.SIGMA:g} sigma above the last {self.WINDOW} steps' {mean:.6g}"
            self._high = high
        if math.isfinite(loss):
            self._last.append(loss)
        return said
