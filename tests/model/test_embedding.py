"""The patch embedding as a matrix product equals timm's convolution of normalised images, and keeps its names."""

import pytest
import timm
import torch
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import nn

from mpp.config import resolve
from mpp.model.embedding import PatchConv2d, embed_as_product
from mpp.model.vit import Vit, VitConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_bytes_become_what_the_convolution_makes_of_normalised_floats_with_its_gradients() -> None:
    torch.manual_seed(0)
    layer = PatchConv2d(3, 8, kernel_size=(2, 4), stride=(2, 4)).double()
    images = torch.randint(0, 256, (3, 3, 6, 8), dtype=torch.uint8)
    mean, std = (255 * torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    product = layer(images, mean, std)
    convolved = nn.Conv2d.forward(layer, (images - mean) / std)
    weights = torch.randn_like(convolved)
    assert torch.allclose(product, convolved, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((product * weights).sum(), list(layer.parameters())),
        torch.autograd.grad((convolved * weights).sum(), list(layer.parameters())),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def test_without_mean_it_is_the_convolution_itself() -> None:
    layer = PatchConv2d(3, 8, kernel_size=2, stride=2)
    images = torch.randn(2, 3, 4, 6)
    assert torch.allclose(layer(images), nn.Conv2d.forward(layer, images), atol=1e-6)


def test_names_and_values_of_the_weights_stay_timms() -> None:
    tiny = {"image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    vit = Vit(resolve(VitConfig, {"name": "vit_tiny_patch16_224", **tiny}))
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=(8, 12), patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    assert isinstance(vit.timm.patch_embed.proj, PatchConv2d)
    assert {k: v.shape for k, v in vit.timm.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    plain.load_state_dict(vit.timm.state_dict())


@pytest.mark.parametrize("stride", [1, 3])
def test_patches_that_overlap_stay_a_convolution(stride: int) -> None:
    embed = timm.layers.PatchEmbed(img_size=8, patch_size=2, embed_dim=4)
    embed.proj = nn.Conv2d(3, 4, kernel_size=2, stride=stride)
    embed_as_product(embed)
    assert type(embed.proj) is nn.Conv2d


def test_the_projection_of_a_feature_map_is_left_alone() -> None:
    embed = HybridEmbed(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)), img_size=8, patch_size=1, embed_dim=4)
    embed_as_product(embed)
    assert type(embed.proj) is nn.Conv2d
