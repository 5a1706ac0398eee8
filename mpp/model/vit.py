"""The timm ViT: uint8 pixels in, class and patch features out, with a place to corrupt the tokens in between.

Shapes: B images, N patches, D width, grid (h, w) with N = h * w, H and W pixels.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn

from mpp.model.embedding import PatchConv2d, embed_as_product
from mpp.model.families import VitConfig, create_vit, pixels_per_token
from mpp.model.last_block import run_last, select_in_last_block
from mpp.model.recomputation import run_blocks

__all__ = ["Interpolation", "Vit", "VitConfig", "VitFeatures", "resize_positions"]

Interpolation = Literal["bicubic", "bilinear"]


class VitFeatures(NamedTuple):
    """Normalised features of the last block."""

    class_token_BD: Tensor | None
    patches_BND: Tensor


class Vit(nn.Module):
    """A timm ``VisionTransformer``, plain or on a ResNet's feature map, without its head.

    Raises ``ConfigError`` for a name that timm does not know or settings that it refuses.
    """

    def __init__(self, settings: VitConfig) -> None:
        super().__init__()
        self.settings = settings
        self.timm = create_vit(settings)
        self.recompute_every = 0  # activations of every n-th block are computed again in the backward pass
        embed_as_product(self.timm.patch_embed)
        select_in_last_block(self.timm.blocks)
        self.width = int(self.timm.embed_dim)
        grid = self.timm.patch_embed.grid_size
        self.grid: tuple[int, int] = (int(grid[0]), int(grid[1]))
        self.patch = pixels_per_token(self.timm)
        self.num_patches = self.grid[0] * self.grid[1]
        self.register_buffer("mean", 255 * torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        if settings.positions == "sincos2d":
            self._fix_sincos_positions()

    def forward(
        self,
        images_BCHW: Tensor,
        corrupt: Callable[[Tensor], Tensor] | None = None,
        at_BM: Tensor | None = None,
    ) -> VitFeatures:
        """Encode uint8 images; ``corrupt`` maps the embedded patches [B, N, D], before positions are added.

        With ``at_BM`` only the patches at these positions (int64 [B, M]) are returned, and no class token.
        """
        tokens_BND = self._embed(images_BCHW)
        if corrupt is not None:
            tokens_BND = corrupt(tokens_BND)
        # As VisionTransformer.forward_features from here on; test_vit holds the two equal.
        tokens = self.timm.norm_pre(self.timm.patch_drop(self.timm._pos_embed(tokens_BND)))
        prefix = self.timm.num_prefix_tokens
        *lower, last = self.timm.blocks
        tokens = run_blocks(lower, tokens, every=self.recompute_every if self.training else 0)
        tokens = self.timm.norm(run_last(last, tokens, None if at_BM is None else at_BM + prefix))
        if at_BM is not None:
            return VitFeatures(None, tokens)
        return VitFeatures(tokens[:, 0] if self.timm.has_class_token else None, tokens[:, prefix:])

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the patch embeddings [B, N, D] of uint8 images, or of floats from 0 to 255."""
        mean, std, embed = cast(Tensor, self.mean), cast(Tensor, self.std), self.timm.patch_embed
        if isinstance(getattr(embed, "proj", None), PatchConv2d):
            return cast(Tensor, embed.norm(embed.proj(images_BCHW, mean, std).flatten(2).transpose(1, 2)))
        return cast(Tensor, embed((images_BCHW - mean) / std))

    def pooled(self, features: VitFeatures) -> Tensor:
        """Return the image feature [B, D] that ``settings.pool`` names."""
        if self.timm.attn_pool is not None:
            pooled: Tensor = self.timm.attn_pool(features.patches_BND)
            return pooled
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
