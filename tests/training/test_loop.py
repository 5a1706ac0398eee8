"""The loop: its order, its rates, accumulation, what it logs, and that it stops where the loss is no number."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from mpp.errors import NumericsError
from mpp.model.tasks import StepOutput
from mpp.stream.batches import Batch
from mpp.training.devices import open_accelerator, prepare
from mpp.training.ema import WeightAverage
from mpp.training.loop import Plan, Trainer, Values
from mpp.training.optim import Schedule

SHARE = 0.25  # learning rate of the second weight, as a share of the first's


class Pull(nn.Module):
    """A stub task: two weights, their sum pulled towards the brightness of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.noise: list[float] = []

    def forward(self, batch: Batch) -> StepOutput:
        self.noise.append(float(torch.rand(())))
        distances = self.first + self.second - batch.images.float().mean(dim=(1, 2, 3))
        return StepOutput(distances.square().mean(), {"distance": distances.abs().mean()})


def brightness(values: list[float]) -> Batch:
    """Return a batch of one image for each value."""
    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Batch(images, None, torch.arange(len(values)), torch.zeros(len(values), dtype=torch.int64))


def trainer(batches: Iterator[Batch], **changes: object) -> tuple[Trainer, Pull]:
    """Return a trainer of a new ``Pull`` by plain gradient descent, and the task."""
    given = {"steps": 5, "accumulate": 1, "learning_rate": 0.1, "clip": None, "log_every": 1, "seed": 0, **changes}
    plan = Plan(**{"schedule": Schedule(decay="constant"), **given})  # type: ignore[arg-type]
    task, accelerator = Pull(), open_accelerator("fp32")
    groups = [{"params": [task.first], "lr_scale": 1.0}, {"params": [task.second], "lr_scale": SHARE}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    wrapped, prepared = prepare(accelerator, task, optimizer, micro_batch=1, accumulate=plan.accumulate, clip=plan.clip)
    return Trainer(wrapped, prepared, batches, accelerator, plan), task


def logged(job: Trainer, start: int = 0, before_step: Callable[[int], None] = lambda step: None) -> dict[int, Values]:
    """Run a trainer; return what it logged, by step."""
    lines: dict[int, Values] = {}
    job.run(start, before_step, lines.__setitem__)
    return lines


def endless(*values: float) -> Iterator[Batch]:
    while True:
        yield from (brightness([value]) for value in values)


def test_the_hook_comes_before_the_batch_and_the_log_after_the_update_and_at_the_last_step() -> None:
    events: list[tuple[str, int, bool]] = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            events.append(("batch", number, bool(task.first > 0)))
            yield brightness([1.0])

    job, task = trainer(batches(), log_every=2)
    job.run(
        0,
        lambda step: events.append(("before", step, bool(task.first > 0))),
        lambda step, values: events.append(("log", step, bool(task.first > 0))),
    )
    assert events == [
        ("before", 0, False),
        ("batch", 0, False),
        ("before", 1, True),
        ("batch", 1, True),
        ("log", 2, True),
        ("before", 2, True),
        ("batch", 2, True),
        ("before", 3, True),
        ("batch", 3, True),
        ("log", 4, True),
        ("before", 4, True),
        ("batch", 4, True),
        ("log", 5, True),
    ]


def test_a_run_that_begins_in_the_middle_takes_the_steps_that_are_left() -> None:
    begun: list[int] = []
    job, _ = trainer(endless(1.0), log_every=2)
    assert list(logged(job, 3, begun.append)) == [4, 5]
    assert begun == [3, 4]


def test_a_log_line_holds_the_loss_and_the_metrics_of_its_own_step() -> None:
    job, _ = trainer(endless(8.0), steps=2)
    lines = logged(job)
    assert lines[1] == {"loss": 64.0, "distance": 8.0, "learning_rate": 0.1}
    # both gradients are -16: the sum of the weights is 1.6 + 0.4 after the first step
    assert lines[2] == pytest.approx({"loss": 36.0, "distance": 6.0, "learning_rate": 0.1})


def test_the_rate_follows_the_schedule_and_the_scale_of_its_group() -> None:
    schedule = Schedule(decay="linear", warmup_steps=2)
    job, _ = trainer(endless(1.0), schedule=schedule, steps=4)
    rates: list[list[float]] = []
    lines: list[float] = []

    def on_log(step: int, values: Values) -> None:
        rates.append([group["lr"] for group in job.optimizer.param_groups])
        lines.append(values["learning_rate"])

    job.run(0, lambda step: None, on_log)
    assert lines == pytest.approx([0.05, 0.1, 0.1, 0.05])
    assert lines == pytest.approx([0.1 * schedule.factor(step, 4) for step in range(4)])
    assert rates == [[rate, rate * SHARE] for rate in lines]


def test_accumulated_micro_batches_are_one_big_batch() -> None:
    values = [1.0, 2.0, 5.0, 9.0, 3.0, 7.0, 4.0, 4.0]
    whole, big = trainer((brightness(values) for _ in range(3)), steps=3)
    lines = logged(whole)
    parts = (brightness(values[first : first + 2]) for _ in range(3) for first in (0, 2, 4, 6))
    split, small = trainer(parts, steps=3, accumulate=4)
    split.accelerator.step = 2  # as after a run, or in a checkpoint, of two micro-batches a step
    for one, other in zip(lines.values(), logged(split).values(), strict=True):
        assert one == pytest.approx(other)
    assert float(big.first.detach()) == pytest.approx(float(small.first.detach()))
    assert len(small.noise) == 4 * len(big.noise)


def test_a_long_gradient_is_cut_and_its_length_logged() -> None:
    job, task = trainer(endless(8.0), steps=1, clip=1.0)
    assert logged(job)[1]["gradient_norm"] == pytest.approx(16 * 2**0.5)
    assert float(task.first.detach()) == pytest.approx(0.1 / 2**0.5, rel=1e-4)


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    whole, cut, other = trainer(endless(1.0)), trainer(endless(1.0)), trainer(endless(1.0), seed=1)
    for job, start in ((whole, 0), (cut, 3), (other, 0)):
        logged(job[0], start)
    assert cut[1].noise == whole[1].noise[3:]
    assert len({*whole[1].noise, *other[1].noise}) == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_steps_that_are_no_numbers_are_skipped_and_the_third_in_a_row_ends_the_run(value: float) -> None:
    job, task = trainer(endless(1.0, 1.0, value, value, value), steps=9)
    lines: dict[int, Values] = {}
    weights: list[float] = []
    with pytest.raises(NumericsError, match=r"(?s)at step 5.*fix: a lower learning rate"):
        job.run(0, lambda step: weights.append(float(task.first.detach())), lines.__setitem__)
    assert list(lines) == [1, 2, 3, 4]
    assert weights[2] == weights[3] == weights[4] == float(task.first.detach())
    assert "loss" in lines[2] and "skipped" not in lines[2]
    assert lines[3] == {"skipped": 1, "learning_rate": 0.1}


def test_a_log_line_counts_the_steps_skipped_since_the_one_before() -> None:
    job, _ = trainer(endless(1.0, float("nan"), float("nan"), 1.0), steps=8, log_every=4)
    lines = logged(job)
    assert [line["skipped"] for line in lines.values()] == [2, 2]
    assert "loss" in lines[4]


def test_every_step_is_heard_of_and_a_run_can_end_earlier() -> None:
    job, _ = trainer(endless(1.0, float("nan")), log_every=100)
    heard: list[tuple[int, bool, bool]] = []
    job.run(
        0, lambda step: None, lambda step, values: None, lambda one, last: heard.append((one.step, one.finite, last)), 3
    )
    assert heard == [(1, True, False), (2, False, False), (3, True, False)]
    assert job.done == 3


def test_the_average_follows_every_update_but_those_that_were_left_out() -> None:
    job, task = trainer(endless(1.0, 1.0, 1.0, float("nan"), 1.0, 1.0), steps=6)
    job.average = WeightAverage(task, 0.5, warmup=False, device=torch.device("cpu"))
    by_hand: list[float] = []

    def on_log(step: int, values: Values) -> None:
        weight = float(task.first.detach())
        by_hand.append(weight if step == 1 else by_hand[-1] if step == 4 else (by_hand[-1] + weight) / 2)
        assert job.average is not None
        assert float(job.average.module.first) == pytest.approx(by_hand[-1], rel=1e-6)

    job.run(0, lambda step: None, on_log)
    assert len(set(by_hand)) == 5
