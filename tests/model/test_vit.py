"""The ViT wrapper: equal to timm's own forward, positions added after the corruption, positions resized."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.vit import Vit, VitConfig, resize_positions

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


def tiny(**changes: object) -> VitConfig:
    return resolve(VitConfig, {**TINY, **changes})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes", [{}, {"pool": "mean"}, {"positions": "sincos2d"}, {"name": "vit_small_patch14_reg4_dinov2"}]
)
def test_features_equal_timms_own_forward(images: torch.Tensor, changes: dict[str, object]) -> None:
    vit = Vit(tiny(**changes)).eval()
    expected = vit.timm.forward_features(images / 127.5 - 1)
    features = vit(images, lambda tokens: tokens)
    prefix = vit.timm.num_prefix_tokens
    assert torch.allclose(features.patches_BND, expected[:, prefix:], atol=1e-6)
    assert torch.allclose(features.class_token_BD, expected[:, 0], atol=1e-6)
    assert features.patches_BND.shape == (2, vit.num_patches, 16)


def test_the_pooled_feature_is_the_one_that_is_named(images: torch.Tensor) -> None:
    for pool in ("token", "mean"):
        vit = Vit(tiny(pool=pool)).eval()
        features = vit(images)
        expected = features.class_token_BD if pool == "token" else features.patches_BND.mean(1)
        assert torch.equal(vit.pooled(features), expected)


def test_corruption_sees_tokens_before_their_positions(images: torch.Tensor) -> None:
    vit, seen = Vit(tiny()).eval(), []
    vit(images, lambda tokens: seen.append(tokens) or tokens)
    assert torch.allclose(seen[0], vit.timm.patch_embed(images / 127.5 - 1), atol=1e-6)


def test_sincos_positions_are_fixed_and_zero_for_the_class_token() -> None:
    vit = Vit(tiny(positions="sincos2d"))
    assert not vit.timm.pos_embed.requires_grad
    assert vit.timm.pos_embed[0, 0].abs().max() == 0
    assert torch.allclose(vit.timm.pos_embed[0, 1:].square().sum(-1), torch.full((6,), 8.0))  # sin² + cos² of 8 bands


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((2, 3), (4, 6)), ((2, 6), (4, 3)), ((4, 4), (2, 2))])
def test_bicubic_positions_equal_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(1))
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=1)
    assert torch.equal(resize_positions(positions, old, new, "bicubic"), expected)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((2, 3), (4, 6)), ((2, 6), (4, 3)), ((5, 5), (3, 3))])
def test_bilinear_positions_equal_the_authors_corner_aligned_zoom(old: tuple[int, int], new: tuple[int, int]) -> None:
    from scipy.ndimage import zoom

    positions = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(1))
    resized = resize_positions(positions, old, new, "bilinear")
    grid = positions[0, 1:].reshape(*old, 8).numpy()
    expected = torch.from_numpy(zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)).reshape(-1, 8)
    assert torch.allclose(resized[0, 1:], expected, atol=1e-5)
    assert torch.equal(resized[0, 0], positions[0, 0])


def test_the_same_grid_keeps_positions_as_they_are() -> None:
    positions = torch.randn(1, 7, 8)
    for how in ("bicubic", "bilinear"):
        assert torch.equal(resize_positions(positions, (2, 3), (2, 3), how), positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_tniy_patch16_224"}, "vit_tiny_patch16_224"),
        ({"name": "resnet50"}, "timm knows no"),
        ({"heads": 3}, "heads|num_heads"),
        ({"image_size": (9, 12)}, "multiple of the patch size"),
    ],
)
def test_settings_that_make_no_vit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vit(tiny(**changes))
