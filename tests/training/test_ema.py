"""The average of the weights: its recursion by hand, its warm-up, what it leaves out, what a checkpoint keeps."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpp.errors import ConfigError
from mpp.training import ema
from mpp.training.ema import WeightAverage, _lerp_unless, open_average

CPU = torch.device("cpu")


def one_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(layer.weight, value)
    return layer


def average_of(average: WeightAverage) -> float:
    return float(average.module.weight)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.01, 0.999))
def test_the_average_is_its_recursion(weights: list[float], decay: float) -> None:
    task = one_weight(3.0)
    average = WeightAverage(task, decay, warmup=False, device=CPU)
    by_hand = 3.0
    for step, weight in enumerate(weights, start=1):
        nn.init.constant_(task.weight, weight)
        average.follow(task, step)
        by_hand = weight if step == 1 else decay * by_hand + (1 - decay) * weight
    assert average_of(average) == pytest.approx(by_hand, abs=1e-4)


def test_in_a_warm_up_the_decay_rises_as_timm_says() -> None:
    task = one_weight(0.0)
    average = WeightAverage(task, 0.9, warmup=True, device=CPU)
    by_hand = 0.0
    for step in range(1, 60):
        nn.init.constant_(task.weight, float(step))
        average.follow(task, step)
        decay = min(0.9, 1 - step ** (-2 / 3)) if step > 1 else 0.0
        by_hand = decay * by_hand + (1 - decay) * step
        assert average_of(average) == pytest.approx(by_hand, rel=1e-5)
    assert decay == 0.9


def test_a_step_that_the_optimizer_left_out_does_not_move_the_average() -> None:
    task = one_weight(1.0)
    average = WeightAverage(task, 0.5, warmup=False, device=CPU)
    average.follow(task, 1)
    nn.init.constant_(task.weight, 2.0)
    for found in (1.0, 3.0):
        average.follow(task, 2, torch.tensor(found))
        assert average_of(average) == 1.0
    average.follow(task, 2, torch.tensor(0.0))
    assert average_of(average) == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_what_a_device_leaves_out_it_decides_itself(dtype: torch.dtype) -> None:
    averages, weights = [torch.zeros(3), torch.zeros(2, 2)], [torch.ones(3), torch.full((2, 2), 2.0)]
    _lerp_unless(torch.tensor(1, dtype=dtype), averages, weights, 0.25)
    assert all(bool((average == 0).all()) for average in averages)
    _lerp_unless(torch.tensor(0, dtype=dtype), averages, weights, 0.25)
    assert all(torch.equal(average, 0.25 * weight) for average, weight in zip(averages, weights, strict=True))


def test_weights_in_half_precision_have_an_average_in_full() -> None:
    task = one_weight(1.0, torch.bfloat16)
    average = WeightAverage(task, 0.9999, warmup=False, device=CPU)
    average.follow(task, 1)
    nn.init.constant_(task.weight, 2.0)
    average.follow(task, 2)
    assert average_of(average) == pytest.approx(1.0001, abs=1e-6)  # bfloat16 has no number between 1 and 1.0078


def test_counters_are_copied_and_running_means_averaged() -> None:
    task = nn.BatchNorm1d(1)
    average = WeightAverage(task, 0.5, warmup=False, device=CPU)
    average.follow(task, 1)
    task(torch.full((4, 1), 10.0))  # the running mean goes to 1
    average.follow(task, 2)
    assert int(average.module.num_batches_tracked) == 1
    assert float(average.module.running_mean) == pytest.approx(0.5)


def test_an_average_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = nn.Linear(5, 3)
    whole = WeightAverage(task, 0.7, warmup=True, device=CPU)
    for step in range(1, 9):
        nn.init.normal_(task.weight)
        whole.follow(task, step)
        if step == 4:
            whole.save(tmp_path)
            cut = WeightAverage(nn.Linear(5, 3), 0.7, warmup=True, device=CPU)
            cut.resume(tmp_path, task)
        if step > 4:
            cut.follow(task, step)
    assert torch.equal(whole.module.weight, cut.module.weight)
    assert not torch.equal(whole.module.weight, task.weight)


def test_a_checkpoint_without_an_average_starts_one_at_its_weights(tmp_path: Path) -> None:
    average = WeightAverage(one_weight(1.0), 0.9, warmup=False, device=CPU)
    average.resume(tmp_path, one_weight(4.0))
    assert average_of(average) == 4.0


def test_divided_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, task = Accelerator(cpu=True), one_weight(1.0)
    assert open_average(task, None, warmup=False, accelerator=accelerator) is None
    assert open_average(task, 0.9, warmup=False, accelerator=accelerator) is not None
    monkeypatch.setattr(ema, "divides_weights", lambda accelerator: True)
    with pytest.raises(ConfigError, match=r"(?s)ema averages whole weights.*ZeRO 1 or 2"):
        open_average(task, 0.9, warmup=False, accelerator=accelerator)
