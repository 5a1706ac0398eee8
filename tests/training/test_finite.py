"""Steps that are not finite: skipped on the device or on the host, counted, and ended; and losses that leap."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mpp.training.finite import FiniteGuard, Judged, Spikes, gradient_norm, not_finite

NAN = float("nan")


def guard(optimizer: torch.optim.Optimizer) -> FiniteGuard:
    return FiniteGuard(Accelerator(cpu=True), optimizer)


def weight_of(kind: str) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(3))
    if kind == "sgd":
        return weight, torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (math.inf, 1.0), (1.0, NAN), (1.0, math.inf), (1.0, 1.0)])
def test_a_step_is_skipped_where_loss_or_gradient_is_not_finite(loss: float, norm: float) -> None:
    judge = guard(weight_of("adamw")[1])
    skip = judge.judge(4, [torch.tensor(1.0), torch.tensor(loss)], torch.tensor(norm))
    finite = math.isfinite(loss) and math.isfinite(norm)
    assert float(skip) == (not finite)
    (judged,) = judge.read()
    assert judged.step == 5 and judged.finite == finite
    assert judge.read() == []


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_skipped_step_leaves_weights_and_moments_as_if_it_had_never_been(kind: str) -> None:
    (skipping, one), (other, two) = weight_of(kind), weight_of(kind)
    judge = guard(one)
    for gradient in (NAN, 1.0, NAN, -2.0):  # the very first step is skipped, too
        skipping.grad = torch.full((3,), gradient)
        judge.update(one, torch.tensor(float(math.isnan(gradient))))
        if not math.isnan(gradient):
            other.grad = torch.full((3,), gradient)
            two.step()
    assert torch.equal(skipping, other)
    for mine, theirs in zip(one.state[skipping].values(), two.state[other].values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_a_gpu_is_told_skips_the_step_without_anyone_looking() -> None:
    class Told(Tensor):
        is_cuda = True

    weight, optimizer = weight_of("adamw")
    (judge, before) = guard(optimizer), weight.detach().clone()
    for gradient, skip in ((NAN, 1.0), (1.0, 0.0)):
        weight.grad = torch.full((3,), gradient)
        judge.update(optimizer, torch.tensor(skip).as_subclass(Told))
        assert torch.equal(weight, before) == bool(skip)
    assert float(optimizer.state[weight]["step"]) == 1


def test_the_third_in_a_row_is_the_last_and_a_finite_step_begins_anew() -> None:
    judge, bad, good = guard(weight_of("sgd")[1]), Judged(1, NAN, 1.0), Judged(1, 1.0, 1.0)
    assert [judge.count(step) for step in (bad, bad, good, bad, bad, bad)] == [False] * 5 + [True]
    assert judge.state() == {"in_a_row": 3, "since_log": 5}
    other = guard(weight_of("sgd")[1])
    other.resume({"in_a_row": 2, "since_log": 2})
    assert other.count(bad)


def test_the_norm_is_that_of_all_gradients_together() -> None:
    task = nn.ParameterList([torch.zeros(2), torch.zeros(1), torch.zeros(1)])
    task[0].grad, task[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert float(gradient_norm(task)) == 7.0


def test_the_error_says_what_is_not_finite_and_where() -> None:
    assert str(not_finite(Judged(7, 1.0, NAN))).startswith("the gradient is not finite at step 7")
    assert "fix: mpp replay F; a lower" in str(not_finite(Judged(7, NAN, NAN), fix="mpp replay F"))


@pytest.mark.parametrize(("leap", "spike"), [(5.9, False), (6.1, True), (-9.0, False)])
def test_a_spike_is_more_than_six_deviations_above_the_mean(leap: float, spike: bool) -> None:
    spikes = Spikes()
    for number in range(128):
        assert spikes.begins(10.0 + (-1) ** number) is None  # mean 10, deviation 1
    assert (spikes.begins(10.0 + leap) is not None) == spike


def test_a_spike_is_told_once_and_the_next_one_again() -> None:
    spikes = Spikes()
    losses = [(-1.0) ** number for number in range(128)] + [20.0, 30.0, 0.0, NAN, 50.0]
    told = [number for number, loss in enumerate(losses) if spikes.begins(loss)]
    assert told == [128, 132]


def test_before_the_window_is_full_nothing_is_a_spike() -> None:
    spikes = Spikes()
    assert not any(spikes.begins(loss) for loss in [1.0] * 127 + [1e9])
