"""Optimizers and schedules: which parameters decay, how fast each block learns, rates at known steps."""

import copy
import itertools
import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.encoders import build_encoder
from mpp.model.tasks import ClassificationConfig, MaskedPatches, MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.training.optim import Adam, AdamW, Schedule, Sgd, build_optimizer, peak_rate

VIT = resolve(
    VitConfig,
    {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 4, "width": 16, "depth": 2, "heads": 2},
)


@pytest.fixture
def task() -> MaskedPatches:
    return MaskedPatches(Vit(VIT), MaskedPatchesConfig(), seed=0)


def settings_by_name(task: MaskedPatches, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in task.named_parameters()}


def test_biases_norms_positions_and_tokens_do_not_decay(task: MaskedPatches) -> None:
    found = settings_by_name(task, build_optimizer(task, AdamW(weight_decay=0.1)))
    assert len(found) == len(list(task.parameters()))
    for name, group in found.items():
        free = name.endswith(("bias", "pos_embed", "cls_token", "mask_token")) or "norm" in name
        assert group["weight_decay"] == (0 if free else 0.1), name


def test_layer_decay_slows_lower_blocks_and_leaves_the_head(task: MaskedPatches) -> None:
    found = settings_by_name(task, build_optimizer(task, AdamW(layer_decay=0.5)))
    assert found["head.weight"]["lr_scale"] == 1
    assert found["vit.timm.blocks.1.mlp.fc1.weight"]["lr_scale"] == 0.5
    assert found["vit.timm.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.25
    assert found["vit.timm.patch_embed.proj.weight"]["lr_scale"] == 0.125


def test_layer_decay_counts_from_the_head_with_attention_pooling_too() -> None:
    vit = resolve(VitConfig, {**asdict(VIT), "pool": "map"})
    labels = build_task(ClassificationConfig(), Vit(vit), num_classes=3, seed=0)
    patches = build_task(MaskedPatchesConfig(), Vit(vit), num_classes=None, seed=0)
    for task in (labels, patches):
        optimizer = build_optimizer(task, AdamW(layer_decay=0.5, weight_decay=0.1))
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        found = {name: groups[id(value)] for name, value in task.named_parameters() if value.requires_grad}
        assert found["vit.timm.blocks.1.mlp.fc1.weight"]["lr_scale"] == 0.5
        assert found["vit.timm.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.25
        assert ("vit.timm.attn_pool.latent" in found) == (task is labels)
        if task is labels:
            assert found["vit.timm.attn_pool.kv.weight"]["lr_scale"] == found["head.2.weight"]["lr_scale"] == 1
            assert found["vit.timm.attn_pool.latent"]["weight_decay"] == 0


def test_layer_decay_of_a_hybrid_and_of_a_resnet_slows_what_is_below() -> None:
    changes = {"name": "vit_tiny_r_s16_p8_224", "image_size": (32, 32), "patch_size": None}
    hybrid = resolve(VitConfig, {**asdict(VIT), **changes})
    with torch.device("meta"):
        resnet = build_encoder(resolve(VitConfig, {"name": "resnetv2_50x1_bit", "pool": "mean"}))
        below = build_task(ClassificationConfig(), build_encoder(hybrid), num_classes=3, seed=0)
        labels = build_task(ClassificationConfig(), resnet, num_classes=3, seed=0)
    found = settings_by_name(below, build_optimizer(below, AdamW(layer_decay=0.5)))
    assert found["vit.timm.patch_embed.backbone.conv.weight"]["lr_scale"] == 0.125
    found = settings_by_name(labels, build_optimizer(labels, AdamW(layer_decay=0.5)))
    blocks = [f"vit.timm.stages.{stage}.blocks.{block}.conv1.weight" for stage, block in ((3, 2), (3, 1), (0, 0))]
    assert [found[name]["lr_scale"] for name in blocks] == [0.5, 0.25, 0.5**16]
    assert found["vit.timm.stem.conv.weight"]["lr_scale"] == 0.5**17
    assert found["head.0.weight"]["lr_scale"] == 1


def test_the_papers_optimizers_have_no_weight_decay(task: MaskedPatches) -> None:
    for settings in (Adam(), Sgd()):
        assert all(group["weight_decay"] == 0 for group in build_optimizer(task, settings).param_groups)
    assert build_optimizer(task, Sgd()).param_groups[0]["momentum"] == 0.9


def test_adam_is_adam_without_l2(task: MaskedPatches) -> None:
    ours = build_optimizer(task, Adam(learning_rate=0.01, betas=(0.8, 0.9)))
    twin = copy.deepcopy(task)
    theirs = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(5):
        for mine, other in zip(task.parameters(), twin.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, other in zip(task.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_the_head_can_have_a_decay_of_its_own(task: MaskedPatches) -> None:
    found = settings_by_name(task, build_optimizer(task, AdamW(weight_decay=0.03, head_weight_decay=3.0)))
    assert found["head.weight"]["weight_decay"] == 3.0
    assert found["head.bias"]["weight_decay"] == found["mask_token"]["weight_decay"] == 0
    assert {group["weight_decay"] for name, group in found.items() if name.startswith("vit.")} == {0, 0.03}
    free = settings_by_name(task, build_optimizer(task, AdamW(weight_decay=0.03, head_weight_decay=0.0)))
    assert free["head.weight"]["weight_decay"] == 0


def test_every_layer_of_a_head_decays_as_the_head() -> None:
    task = build_task(ClassificationConfig(), Vit(VIT), num_classes=3, seed=0)
    found = settings_by_name(task, build_optimizer(task, AdamW(weight_decay=0.03, head_weight_decay=3.0)))
    assert [name for name, group in found.items() if group["weight_decay"] == 3.0] == ["head.0.weight", "head.2.weight"]


def test_a_rate_quoted_for_256_images_grows_with_the_batch() -> None:
    assert peak_rate(1.5e-4, None, 4096) == 1.5e-4
    assert peak_rate(1.5e-4, "linear", 4096) == pytest.approx(2.4e-3)  # MAE's pretraining
    assert peak_rate(1.5e-4, "sqrt", 4096) == pytest.approx(6e-4)
    assert peak_rate(0.1, "linear", 256) == peak_rate(0.1, "sqrt", 256) == 0.1


@pytest.mark.parametrize(
    ("decay", "halfway"),
    [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)],
)
def test_the_rate_rises_linearly_and_falls_as_named(decay: str, halfway: float) -> None:
    schedule = resolve(Schedule, {"decay": decay, "warmup_steps": 10})
    assert [schedule.factor(step, 110) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule.factor(10, 110) == 1.0
    assert schedule.factor(60, 110) == pytest.approx(halfway)
    last = {"cosine": 0.5 * (1 + math.cos(math.pi * 0.99)), "linear": 0.01, "constant": 1.0}[decay]
    assert schedule.factor(109, 110) == pytest.approx(last)


DECAYS = ("cosine", "linear", "constant", "rsqrt")


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    """Draw a schedule and a number of steps that it accepts."""
    decay = draw(st.sampled_from(DECAYS))
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps - 1))
    cooldown = draw(st.integers(0, steps - warmup)) if decay in ("constant", "rsqrt") else 0
    settings = {"warmup_steps": warmup, "cooldown_steps": cooldown, "timescale": draw(st.integers(1, 1000))}
    schedule = resolve(Schedule, {"decay": decay, **settings})
    schedule.check(steps)
    return schedule, steps


@given(schedules())
def test_a_rate_rises_to_its_peak_and_never_again(drawn: tuple[Schedule, int]) -> None:
    schedule, steps = drawn
    rates = [schedule.factor(step, steps) for step in range(steps)]
    warmup = schedule.warmup_steps
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == rates[warmup] == 1
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[max(0, warmup - 1) :] == sorted(rates[max(0, warmup - 1) :], reverse=True)


@given(schedules())
def test_a_rate_has_no_jump_and_ends_at_zero_where_it_falls(drawn: tuple[Schedule, int]) -> None:
    schedule, steps = drawn
    rates = [schedule.factor(step, steps) for step in range(steps + 1)]
    fall = schedule.cooldown_steps or (steps - schedule.warmup_steps)
    steepest = {"cosine": math.pi / 2 / fall, "linear": 1 / fall, "constant": 0.0}.get(schedule.decay)
    if steepest is None:
        steepest = 1 / (2 * schedule.timescale)
    if schedule.cooldown_steps:
        steepest += 1 / schedule.cooldown_steps
    for before, after in itertools.pairwise(rates[schedule.warmup_steps :]):
        assert before - after <= steepest + 1e-12
    if schedule.decay in ("cosine", "linear") or schedule.cooldown_steps:
        assert rates[-1] == pytest.approx(0, abs=1e-12)


@given(schedules(), st.integers(1, 500))
def test_before_its_cool_down_a_rate_does_not_know_how_long_the_run_is(drawn: tuple[Schedule, int], more: int) -> None:
    schedule, steps = drawn
    if schedule.decay not in ("constant", "rsqrt"):
        return
    longer = replace(schedule, cooldown_steps=more)
    for step in range(steps - schedule.cooldown_steps):
        assert schedule.factor(step, steps) == longer.factor(step, steps + more)


def test_rsqrt_is_the_inverse_square_root_of_the_time_since_the_warm_up() -> None:
    schedule = Schedule(decay="rsqrt", warmup_steps=10, timescale=100, cooldown_steps=50)
    assert schedule.factor(10, 1000) == 1
    assert schedule.factor(310, 1000) == 0.5  # four timescales in all
    assert schedule.factor(910, 1000) == pytest.approx(10**-0.5)
    assert schedule.factor(950, 1000) == pytest.approx(10.4**-0.5)
    assert schedule.factor(975, 1000) == pytest.approx(10.65**-0.5 / 2)


def test_a_cool_down_that_does_not_fit_is_refused() -> None:
    Schedule(decay="rsqrt", warmup_steps=5, cooldown_steps=5).check(10)
    with pytest.raises(ConfigError, match=r"(?s)5 warmup_steps and 6 cooldown_steps are more than steps 10.*=1"):
        Schedule(decay="rsqrt", warmup_steps=5, cooldown_steps=6).check(10)
    with pytest.raises(ConfigError, match="cosine falls to zero by itself"):
        Schedule(decay="cosine", cooldown_steps=1).check(10)


def test_a_warm_up_that_would_not_end_is_refused() -> None:
    Schedule(warmup_steps=9).check(10)
    with pytest.raises(ConfigError, match=r"(?s)warmup_steps 10 is not below steps 10.*schedule.warmup_steps=1"):
        Schedule(warmup_steps=10).check(10)
