"""The training loop, in one fixed order, for any task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mpp.faults import reach, wants
from mpp.model.tasks import StepOutput
from mpp.stream.batches import Batch
from mpp.stream.device import OnDevice
from mpp.training.devices import RunAhead
from mpp.training.ema import WeightAverage
from mpp.training.finite import FiniteGuard, Judged, gradient_norm, not_finite
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
        self.finite = FiniteGuard(accelerator, optimizer)
        self.waits_for_data: Callable[[int], None] = _nobody  # called before a micro-batch is asked for
        self.computes: Callable[[int], None] = _nobody  # and when it has come
        self.done = 0  # finished steps
        self._run_ahead = RunAhead(accelerator.device)
        self._deepspeed = accelerator.state.deepspeed_plugin is not None

    def run(
        self,
        start: int,
        before_step: Callable[[int], None],
        on_log: Callable[[int, Values], None],
        on_judged: Callable[[Judged, bool], None] | None = None,
        end: int | None = None,
    ) -> None:
        """Take steps from ``start`` to the end of the plan, or to ``end``.

        ``on_judged(judged, last)`` hears of every step, on a GPU at log steps; it has to raise where that is the
        ``last``. Without it ``NumericsError`` is raised there.
        """
        plan = self.plan
        self.task.train()
        # Accelerate goes on counting micro-batches where a checkpoint, or the run before, divided batches otherwise.
        self.accelerator.step = 0
        for step in range(start, plan.steps if end is None else end):
            # DO NOT CHANGE THE ORDER OF OPERATIONS: exact resume and the equality of runs rest on it.
            before_step(step)  # 1. save or stop, if due: the state here is that of `step` finished steps
            self.seed(step)  # 2. dropout and stochastic depth become functions of (seed, step, process)
            rate = self._set_learning_rate(step)  # 3. a function of the step alone
            outputs, norm = self.gradients(step)  # 4. batch, forward, backward (accumulated), clip
            skip = self._update(step, outputs, norm)  # 5. optimizer step; left out where something is not finite
            if self.average is not None:  # 6. the average of the weights, as the optimizer left them
                self.average.follow(self._bare, step + 1, skip)
            self.done = step + 1
            self._run_ahead.wait()
            due = (step + 1) % plan.log_every == 0 or step + 1 == plan.steps
            if due or self.accelerator.device.type == "cpu":
                self.read_judged(on_judged)  # 7. what became of the steps: with 8. the only wait for the device
            if due:
                on_log(step + 1, {**self._values(outputs, norm), "learning_rate": rate})  # 8. metrics of this step

    def read_judged(self, on_judged: Callable[[Judged, bool], None] | None) -> None:
        """Hand over what became of the steps since the last call; all processes call this at the same step."""
        for judged in self.finite.read():
            # DeepSpeed has made the update before anyone could look: its weights are no numbers now.
            last = self.finite.count(judged) or (self._deepspeed and not judged.finite)
            if on_judged is not None and not self._deepspeed:
                on_judged(judged, last)
            if last:
                raise not_finite(judged)

    def seed(self, step: int) -> None:
        torch.manual_seed((self.plan.seed * 1_000_003 + step) * 1_009 + self.accelerator.process_index)

    def _set_learning_rate(self, step: int) -> float:
        rate = self.plan.learning_rate * self.plan.schedule.factor(step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def gradients(self, step: int) -> tuple[list[StepOutput], Tensor | None]:
        """Compute the gradient of step ``step``, clipped; return the outputs of its micro-batches and its norm [].

        The norm is None where the gradient is not looked at: DeepSpeed does that itself.
        """
        outputs: list[StepOutput] = []
        for _ in range(self.plan.accumulate):
            self.waits_for_data(step)
            batch = next(self.batches)
            self.computes(step)
            reach("step", step + 1)
            with self.accelerator.accumulate(self.task):
                output: StepOutput = self.task(batch)
                loss = output.loss * float("nan") if wants("nan", "loss", step + 1) else output.loss
                self.accelerator.backward(loss)
                if self._deepspeed:  # its steps are no-ops here, but it wants to be asked
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            metrics = {key: value.detach() for key, value in output.metrics.items()}
            outputs.append(StepOutput(loss.detach(), metrics))
        if wants("nan", "gradient", step + 1):
            next(weight.grad for weight in self.task.parameters() if weight.grad is not None).fill_(float("nan"))
        if self._deepspeed or self.plan.clip is not None:
            clip = self.plan.clip
            return outputs, None if clip is None else self.accelerator.clip_grad_norm_(self.task.parameters(), clip)
        return outputs, gradient_norm(self.task)

    def _update(self, step: int, outputs: list[StepOutput], norm: Tensor | None) -> Tensor:
        """Make the optimizer's step, or none, and forget the gradient; return 1.0 [] where there was none."""
        device = outputs[-1].loss.device
        known = torch.zeros((), device=device) if norm is None else torch.as_tensor(norm, device=device)
        skip = self.finite.judge(step, [output.loss for output in outputs], known)
        if not self._deepspeed:
            self.finite.update(self.optimizer, skip)
            self.optimizer.zero_grad()
        return skip

    def _values(self, outputs: list[StepOutput], norm: Tensor | None) -> Values:
        names = ["loss", *outputs[0].metrics]
        rows = torch.stack([torch.stack([output.loss, *output.metrics.values()]) for output in outputs])
        means = self.accelerator.reduce(rows.double().mean(dim=0), reduction="mean")
        values = dict(zip(names, means.tolist(), strict=True))
        if norm is not None and self.plan.clip is not None:
            values["gradient_norm"] = float(norm)
        skipped, self.finite.since_log = self.finite.since_log, 0
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return {**finite, "skipped": skipped} if skipped else finite


def _nobody(step: int) -> None:
    """Hear of a step and do nothing."""
