"""Named sizes: each has the number of parameters that was published, and none needs memory to be counted."""

import pytest
import timm
import torch

from mpp.config import resolve
from mpp.model.sizes import SIZES
from mpp.model.vit import Vit, VitConfig

# millions: ViT's Tab. 1 or timm (Ti to H, with a head of 1000 classes), Scaling ViT's Tab. 2, ViT-22B's Tab. 1
PUBLISHED = {
    "vit_tiny_patch16_224": 5.7,
    "vit_small_patch16_224": 22,
    "vit_base_patch16_224": 86,
    "vit_large_patch16_224": 307,
    "vit_huge_patch14_224": 632,
    "vit_giant_patch14_224": 1011,
    "vit_gigantic_patch14_224": 1843,
    "vit_s_patch28_224": 5.4,
    "vit_s_patch16_224": 5.0,
    "vit_base_patch28_224": 87,
    "vit_22b_patch14_224": 21743,
}


def on_meta(**changes: object) -> Vit:
    with torch.device("meta"):
        return Vit(resolve(VitConfig, changes))


def parameters(vit: Vit) -> int:
    return sum(parameter.numel() for parameter in vit.parameters())


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_a_name_means_the_published_number_of_parameters(name: str, millions: float) -> None:
    vit = on_meta(name=name)
    assert all(value.is_meta for value in [*vit.parameters(), *vit.buffers()])
    classes = 1000 if millions > 5.5 and name not in SIZES else 0
    assert (parameters(vit) + classes * (vit.width + 1)) / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize("name", SIZES)
def test_a_name_of_ours_is_not_one_of_timms_and_agrees_with_its_size(name: str) -> None:
    assert not timm.is_model(name)
    vit, size = on_meta(name=name), SIZES[name]
    assert vit.patch == (size.patch_size, size.patch_size)
    assert vit.grid == (224 // size.patch_size, 224 // size.patch_size)
    assert (vit.width, len(vit.timm.blocks)) == (size.width, size.depth)


def test_the_blocks_of_vit_22b_are_parallel_with_normed_queries_and_without_the_biases_it_names() -> None:
    block = on_meta(name="vit_22b_patch14_224").timm.blocks[0]
    named = {name: tuple(value.shape) for name, value in block.named_parameters()}
    assert named == {
        "in_norm.weight": (6144,),
        "in_proj.weight": (24576 + 3 * 6144, 6144),
        "mlp_bias": (24576,),
        "q_norm.weight": (128,),
        "k_norm.weight": (128,),
        "attn_out_proj.weight": (6144, 6144),
        "attn_out_proj.bias": (6144,),
        "mlp_out_proj.weight": (6144, 24576),
        "mlp_out_proj.bias": (6144,),
    }


def test_settings_override_a_name_of_ours_too() -> None:
    vit = on_meta(name="vit_22b_patch14_224", width=64, heads=4, depth=2, parallel=False, bias=True, patch_size=16)
    assert (vit.width, len(vit.timm.blocks), vit.patch) == (64, 2, (16, 16))
    assert vit.timm.blocks[0].attn.qkv.bias is not None
    assert vit.timm.blocks[0].norm1.bias is not None
    assert isinstance(vit.timm.blocks[0].attn.q_norm, torch.nn.LayerNorm)
