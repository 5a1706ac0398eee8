"""The ViT wrapper: equal to timm's own forward, positions added after the corruption, positions resized."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.vit import Interpolation, Vit, VitConfig, resize_positions

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


def tiny(**changes: object) -> VitConfig:
    return resolve(VitConfig, {**TINY, **changes})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


HYBRID = {"name": "vit_tiny_r_s16_p8_224", "image_size": (32, 64), "patch_size": None}
FAMILIES: dict[str, dict[str, object]] = {
    "plain": {},
    "mean": {"pool": "mean"},
    "map": {"pool": "map"},
    "sincos2d": {"positions": "sincos2d"},
    "sincos2d, map": {"positions": "sincos2d", "pool": "map"},
    "registers": {"name": "vit_small_patch14_reg4_dinov2"},
    "qk_norm": {"qk_norm": True},
    "no bias": {"bias": False},
    "parallel": {"parallel": True},
    "22B": {"name": "vit_22b_patch14_224", "pool": "map"},
    "parallel things": {"name": "vit_small_patch16_18x2_224"},
    "hybrid": HYBRID,
    "hybrid, map, 22B": {**HYBRID, "pool": "map", "parallel": True, "qk_norm": True, "bias": False},
    "patch 1": {"patch_size": 1},
    "norm before the blocks": {"name": "vit_xsmall_patch16_clip_224"},
    "positions without the class token": {"name": "vit_base_patch16_xp_224"},
    "any size, no last norm": {"name": "vit_intern300m_patch14_448"},
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_timms_own_forward_in_every_family(family: str) -> None:
    torch.manual_seed(0)
    vit = Vit(tiny(**FAMILIES[family])).eval()
    images = torch.randint(0, 256, (2, 3, *vit.settings.image_size), dtype=torch.uint8)
    pixels = (images - 127.5) / 127.5
    expected = vit.timm.forward_features(pixels)
    features = vit(images, lambda tokens: tokens)
    prefix = vit.timm.num_prefix_tokens
    assert torch.allclose(features.patches_BND, expected[:, prefix:], atol=1e-5)
    if vit.settings.pool == "map":
        assert features.class_token_BD is None and prefix == 0
    else:
        assert torch.allclose(features.class_token_BD, expected[:, 0], atol=1e-5)
    assert features.patches_BND.shape == (2, vit.num_patches, 16)
    assert vit.num_patches == vit.grid[0] * vit.grid[1]
    assert (vit.grid[0] * vit.patch[0], vit.grid[1] * vit.patch[1]) == vit.settings.image_size
    # timm's mean leaves out, as ours does, the tokens before the patches
    assert torch.allclose(vit.pooled(features), vit.timm.forward_head(expected, pre_logits=True), atol=1e-5)


def test_the_pooled_feature_is_the_one_that_is_named(images: torch.Tensor) -> None:
    for pool in ("token", "mean", "map"):
        vit = Vit(tiny(pool=pool)).eval()
        features = vit(images)
        if pool == "map":
            expected = vit.timm.attn_pool(features.patches_BND)
        else:
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


GRIDS = [
    ((4, 4), (6, 6)),  # 32 px to 48 px with patches of 8
    ((2, 3), (4, 6)),
    ((8, 8), (8, 12)),  # 32 x 48 px
    ((6, 10), (8, 12)),
    ((2, 6), (4, 3)),  # as many places in another shape
    ((4, 9), (6, 6)),
    ((6, 6), (9, 4)),
    ((5, 5), (3, 3)),
]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_positions_equal_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(1))
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=1)
    resized = resize_positions(positions, old, new, "bicubic")
    assert torch.equal(resized, expected)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert resized.shape == (1, 1 + new[0] * new[1], 8)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_positions_equal_the_authors_corner_aligned_zoom(old: tuple[int, int], new: tuple[int, int]) -> None:
    from scipy.ndimage import zoom

    positions = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(1))
    resized = resize_positions(positions, old, new, "bilinear")
    grid = positions[0, 1:].reshape(*old, 8).numpy()
    expected = torch.from_numpy(zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)).reshape(-1, 8)
    assert torch.allclose(resized[0, 1:], expected, atol=1e-5)
    assert torch.equal(resized[0, 0], positions[0, 0])


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_ramp_stays_a_ramp_from_the_first_place_to_the_last(
    old: tuple[int, int], new: tuple[int, int], how: Interpolation
) -> None:
    down, right = torch.meshgrid(torch.linspace(0, 1, old[0]), torch.linspace(0, 1, old[1]), indexing="ij")
    table = torch.stack([down, right], dim=-1).reshape(1, -1, 2)
    resized = resize_positions(table, old, new, how).reshape(*new, 2)
    for axis, count in enumerate(new):  # down grows along rows alone, right along columns alone
        ramp = resized[..., axis].movedim(axis, 0)
        assert torch.allclose(ramp, ramp[:, :1].expand_as(ramp), atol=1e-5)
        assert (ramp.diff(dim=0) > 0).all()
        if how == "bilinear":
            assert torch.allclose(ramp[:, 0], torch.linspace(0, 1, count), atol=1e-5)


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
