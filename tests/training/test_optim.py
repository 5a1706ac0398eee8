"""Optimizers and schedules: which parameters decay, how fast each block learns, rates at known steps."""

import math
from dataclasses import asdict

import pytest
import torch

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.encoders import build_encoder
from mpp.model.tasks import ClassificationConfig, MaskedPatches, MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.training.optim import Adam, AdamW, Schedule, Sgd, build_optimizer

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


def test_a_warm_up_that_would_not_end_is_refused() -> None:
    Schedule(warmup_steps=9).check(10)
    with pytest.raises(ConfigError, match=r"(?s)warmup_steps 10 is not below steps 10.*schedule.warmup_steps=1"):
        Schedule(warmup_steps=10).check(10)
