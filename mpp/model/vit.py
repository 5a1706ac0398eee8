"""The timm ViT: uint8 pixels in, class and patch features out, with a place to corrupt the tokens in between.

Shapes: B images, N patches, D width, grid (h, w) with N = h * w, H and W pixels.
"""

import difflib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import timm
import torch
from pydantic import Field
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpp.config import config
from mpp.errors import ConfigError

Pool = Literal["token", "mean"]
Interpolation = Literal["bicubic", "bilinear"]


@config
class VitConfig:
    """A timm ViT and what may differ from its name; it travels inside every backbone file."""

    name: str = Field("vit_base_patch16_224", description="timm model, any vit_*; the keys below override it")
    image_size: tuple[int, int] = Field((224, 224), description="height and width of the input, pixels")
    patch_size: int | None = Field(None, gt=0, description="side of a patch, pixels")
    width: int | None = Field(None, gt=0, description="width D of the tokens")
    depth: int | None = Field(None, gt=0, description="number of blocks")
    heads: int | None = Field(None, gt=0, description="attention heads; they divide the width")
    pool: Pool = Field("token", description="image feature: the class token or the mean of the patches")
    positions: Literal["learned", "sincos2d"] = Field("learned", description="position embedding")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="pixel mean in [0, 1], per channel")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="pixel deviation in [0, 1], per channel")


class VitFeatures(NamedTuple):
    """Normalised features of the last block."""

    class_token_BD: Tensor | None
    patches_BND: Tensor


class Vit(nn.Module):
    """A timm ``VisionTransformer`` without its head.

    Raises ``ConfigError`` for a name that timm does not know or settings that it refuses.
    """

    def __init__(self, settings: VitConfig) -> None:
        super().__init__()
        self.settings = settings
        self.timm = _create(settings)
        self.width = int(self.timm.embed_dim)
        grid, patch = self.timm.patch_embed.grid_size, self.timm.patch_embed.patch_size
        self.grid: tuple[int, int] = (int(grid[0]), int(grid[1]))
        self.patch: tuple[int, int] = (int(patch[0]), int(patch[1]))
        self.num_patches = self.grid[0] * self.grid[1]
        self.register_buffer("mean", 255 * torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        if settings.positions == "sincos2d":
            self._fix_sincos_positions()

    def forward(self, images_BCHW: Tensor, corrupt: Callable[[Tensor], Tensor] | None = None) -> VitFeatures:
        """Encode uint8 images; ``corrupt`` maps the embedded patches [B, N, D], before positions are added."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        tokens_BND = self.timm.patch_embed((images_BCHW - mean) / std)
        if corrupt is not None:
            tokens_BND = corrupt(tokens_BND)
        # As VisionTransformer.forward_features from here on; test_vit holds the two equal.
        tokens = self.timm.norm_pre(self.timm.patch_drop(self.timm._pos_embed(tokens_BND)))
        tokens = self.timm.norm(self.timm.blocks(tokens))
        prefix = self.timm.num_prefix_tokens
        return VitFeatures(tokens[:, 0] if self.timm.has_class_token else None, tokens[:, prefix:])

    def pooled(self, features: VitFeatures) -> Tensor:
        """Return the image feature [B, D] that ``settings.pool`` names."""
        if self.settings.pool == "mean" or features.class_token_BD is None:
            return features.patches_BND.mean(dim=1)
        return features.class_token_BD

    def _fix_sincos_positions(self) -> None:
        """Replace learned positions by fixed sines and cosines; the class token gets zeros."""
        positions = self.timm.pos_embed
        assert positions is not None
        table = build_sincos2d_pos_embed(list(self.grid), dim=self.width)
        with torch.no_grad():
            positions.zero_()
            positions[0, positions.shape[1] - self.num_patches :] = table
        positions.requires_grad_(False)


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], how: Interpolation) -> Tensor:
    """Interpolate position embeddings [1, prefix + N, D] from one grid to another in 2-D.

    ``bilinear`` aligns the corners, as the authors' code does; ``bicubic`` is timm's, antialiased. Prefix
    entries (class token) are kept (ViT, section 3.2).
    """
    exact = how == "bilinear"
    resized: Tensor = resample_abs_pos_embed(
        positions,
        new_size=list(new),
        old_size=list(old),
        num_prefix_tokens=positions.shape[1] - old[0] * old[1],
        interpolation=how,
        antialias=not exact,
        align_corners=True if exact else None,
    )
    return resized


def _create(settings: VitConfig) -> VisionTransformer:
    if not settings.name.startswith("vit_") or not timm.is_model(settings.name):
        near = difflib.get_close_matches(settings.name, timm.list_models("vit_*"), n=1, cutoff=0.4)
        raise ConfigError(
            f"vit.name: timm knows no {settings.name!r}", fix=f"vit.name={near[0] if near else 'vit_base_patch16_224'}"
        )
    overrides: dict[str, Any] = {
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
    }
    try:
        model = timm.create_model(
            settings.name,
            num_classes=0,
            img_size=settings.image_size,
            global_pool="token" if settings.pool == "token" else "avg",
            fc_norm=False,  # one final norm for every token, whatever the pooling
            drop_path_rate=settings.drop_path,
            **{key: value for key, value in overrides.items() if value is not None},
        )
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"vit: timm cannot build {settings.name} with these settings: {error}") from error
    if not isinstance(model, VisionTransformer) or (settings.pool == "token" and not model.has_class_token):
        raise ConfigError(
            f"vit.name: {settings.name} is no plain ViT with a class token", fix="vit.pool=mean or a vit_*_patch* name"
        )
    height, width = model.patch_embed.patch_size
    if settings.image_size[0] % height or settings.image_size[1] % width:
        raise ConfigError(f"vit.image_size {settings.image_size} is not a multiple of the patch size {(height, width)}")
    return model
