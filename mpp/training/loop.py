"""The training loop, in one fixed order, for any task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mpp.errors import NumericsError
from mpp.model.tasks import StepOutput
from mpp.stream.batches import Batch
from mpp.stream.device import OnDevice
from mpp.training.ema import WeightAverage
from mpp.training.optim import Schedule

Values = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. ``accumulate`` micro-batches of every process make one step."""

    steps: int
    accumulate: int
    learning_rate: float
    schedule: Schedule
    clip: float | None
    log_every: int
    seed: int


class Trainer:
    """A task, its optimizer and its data, ready to take steps.

    ``before_step(step)`` is called with the number of finished steps, so that what it saves resumes there.
    ``on_log(step, values)`` gets the metrics of that very step, averaged over all processes.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: Optimizer,
        batches: Iterator[Batch],
        accelerator: Accelerator,
        plan: Plan,
        average: WeightAverage | None = None,
    ) -> None:
        self.task, self.optimizer = task, optimizer
        self.accelerator, self.plan = accelerator, plan
        self.batches = OnDevice(batches, accelerator.device)
        self.average, self._bare = average, accelerator.unwrap_model(task)
        self._last: Tensor | None = None

    def run(self, start: int, before_step: Callable[[int], None], on_log: Callable[[int, Values], None]) -> None:
        """Take steps from ``start`` to the end of the plan; raise ``NumericsError`` for a loss that is not finite."""
        plan = self.plan
        self.task.train()
        # Accelerate goes on counting micro-batches where a checkpoint, or the run before, divided batches otherwise.
        self.accelerator.step = 0
        for step in range(start, plan.steps):
            # DO NOT CHANGE THE ORDER OF OPERATIONS: exact resume and the equality of runs rest on it.
            before_step(step)  # 1. save or stop, if due: the state here is that of `step` finished steps
            self._seed(step)  # 2. dropout and stochastic depth become functions of (seed, step, process)
            rate = self._set_learning_rate(step)  # 3. a function of the step alone
            outputs, norm = self._update()  # 4. batch, forward, backward (accumulated), clip, optimizer step
            self._last = outputs[-1].loss if norm is None else outputs[-1].loss + norm
            if self.average is not None:  # 5. the average of the weights, as the optimizer left them
                self.average.follow(self._bare, step + 1, self._skipped())
            if (step + 1) % plan.log_every == 0 or step + 1 == plan.steps:  # 6. the only wait for the device
                values = self._values(outputs, norm)
                self.check_finite(step)
                on_log(step + 1, {**values, "learning_rate": rate})

    def check_finite(self, step: int) -> None:
        """Raise ``NumericsError``, on all processes alike, where one's last loss or gradient norm is not finite.

        Such weights must be neither saved nor used. All processes call this at the same step.
        """
        if self._last is None:
            return
        if not bool(torch.isfinite(self.accelerator.reduce(self._last.clone(), reduction="mean"))):
            raise NumericsError(
                f"the loss or its gradient is not finite at step {step + 1}",
                fix="a lower learning rate, clip=1, or precision=fp32",
            )

    def _seed(self, step: int) -> None:
        torch.manual_seed((self.plan.seed * 1_000_003 + step) * 1_009 + self.accelerator.process_index)

    def _set_learning_rate(self, step: int) -> float:
        rate = self.plan.learning_rate * self.plan.schedule.factor(step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def _update(self) -> tuple[list[StepOutput], Tensor | None]:
        outputs: list[StepOutput] = []
        norm = None
        for _ in range(self.plan.accumulate):
            batch = next(self.batches)
            with self.accelerator.accumulate(self.task):
                output: StepOutput = self.task(batch)
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients and self.plan.clip is not None:
                    norm = self.accelerator.clip_grad_norm_(self.task.parameters(), self.plan.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            outputs.append(
                StepOutput(output.loss.detach(), {key: value.detach() for key, value in output.metrics.items()})
            )
        return outputs, norm

    def _skipped(self) -> Tensor | None:
        """Return the device's note [] that the optimizer left the update out (not 0), None where it keeps none."""
        note: Tensor | None = getattr(getattr(self.optimizer, "optimizer", self.optimizer), "found_inf", None)
        return note

    def _values(self, outputs: list[StepOutput], norm: Tensor | None) -> Values:
        names = ["loss", *outputs[0].metrics]
        rows = torch.stack([torch.stack([output.loss, *output.metrics.values()]) for output in outputs])
        means = self.accelerator.reduce(rows.double().mean(dim=0), reduction="mean")
        values = dict(zip(names, means.tolist(), strict=True))
        return values if norm is None else {**values, "gradient_norm": float(norm)}
