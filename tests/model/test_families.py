"""Families: what a name and its overrides build, what a hybrid's token stands for, and settings that fit nothing."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.families import VitConfig, create_resnet, create_vit, is_resnet, pixels_per_token

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


def config(**settings: Any) -> VitConfig:
    return resolve(VitConfig, settings)


@pytest.mark.parametrize("parallel", [True, False, None])
@pytest.mark.parametrize("qk_norm", [True, False, None])
@pytest.mark.parametrize("bias", [True, False, None])
def test_parallel_blocks_norms_of_queries_and_biases_are_chosen_one_by_one(
    parallel: bool | None, qk_norm: bool | None, bias: bool | None
) -> None:
    model = create_vit(config(**TINY, parallel=parallel, qk_norm=qk_norm, bias=bias))
    block = model.blocks[1]
    assert type(block) is (ParallelScalingBlock if parallel else Block)
    names = {name for name, _ in model.named_parameters()}
    norms = {name for name in names if "norm" in name}
    assert any("q_norm" in name for name in norms) == any("k_norm" in name for name in norms) == bool(qk_norm)
    biased = bias is not False
    assert all(name.removesuffix("weight") + "bias" in names for name in norms if name.endswith("weight")) == biased
    assert any(name.endswith("bias") for name in norms) == biased
    qkv = block.in_proj if parallel else block.attn.qkv
    assert (qkv.bias is not None) == biased
    mlp = block.mlp_out_proj if parallel else block.mlp.fc2
    assert mlp.bias is not None  # those of the MLP stay


@pytest.mark.parametrize(
    ("name", "size", "patch", "grid"),
    [
        ("vit_base_r50_s16_224", (32, 64), (16, 16), (2, 4)),
        ("vit_small_r26_s32_224", (64, 32), (32, 32), (2, 1)),
        ("vit_tiny_r_s16_p8_224", (32, 96), (32, 32), (1, 3)),
        ("vit_large_r50_s32_224", (96, 32), (32, 32), (3, 1)),
    ],
)
def test_a_token_of_a_hybrid_stands_for_its_stride(
    name: str, size: tuple[int, int], patch: tuple[int, int], grid: tuple[int, int]
) -> None:
    with torch.device("meta"):
        model = create_vit(config(name=name, image_size=size))
    assert pixels_per_token(model) == patch
    assert tuple(model.patch_embed.grid_size) == grid


@pytest.mark.parametrize("size", [(8, 8), (24, 32), (32, 40)])
def test_a_hybrid_refuses_images_whose_tokens_would_not_stand_for_equal_areas(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"not a multiple of the patch size \(16, 16\)"):
        create_vit(config(name="vit_base_r50_s16_224", image_size=size, width=16, depth=1, heads=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_base_r50_s16_224", "image_size": (32, 32), "patch_size": 2}, "as large as its ResNet makes"),
        ({"name": "vit_small_resnet26d_224", "image_size": (32, 32)}, "normalises over the micro-batch"),
        ({"name": "vit_22c_patch14_224"}, "vit.name=vit_22b_patch14_224"),
        ({"name": "resnetv2_50x5_bit"}, "vit.name=resnetv2_50x[13]_bit"),
        ({"name": "resnet50"}, "no BiT ResNet"),
        ({**TINY, "parallel": True, "name": "vit_relpos_small_patch16_224"}, "vit"),
    ],
)
def test_settings_that_make_no_vit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_vit(config(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 16, "depth": 3}, r"vit.patch_size, vit.depth: .* is a ResNet"),
        ({"qk_norm": False}, "vit.qk_norm"),
        ({"positions": "sincos2d"}, "vit.positions"),
        ({"pool": "token"}, "fix: vit.pool=mean"),
        ({"pool": "map"}, "fix: vit.pool=mean"),
    ],
)
def test_a_resnet_refuses_what_only_a_vit_has(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_resnet(config(**{"name": "resnetv2_50x1_bit", "pool": "mean", **settings}))


def test_only_resnets_of_bit_whose_images_do_not_see_each_other_are_resnets_here() -> None:
    names = ["resnetv2_50x1_bit", "resnetv2_152x4_bit", "resnetv2_50", "resnetv2_50x9_bit", "vit_base_r50_s16_224"]
    assert [name for name in names if is_resnet(config(name=name))] == names[:2]
    with torch.device("meta"):
        model = create_resnet(config(name="resnetv2_50x1_bit", pool="mean"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_500_352  # BiT's R50x1 without its head
