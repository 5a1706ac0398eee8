"""The patch embedding as one matrix product on cut patches; its weights stay those of timm's convolution, by name too.

Shapes: B images, N patches of p x q pixels, D width, grid (h, w) with N = h * w.
"""

import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from mpp.model.targets import cut_patches


class PatchConv2d(nn.Conv2d):
    """A convolution whose patches do not overlap, computed as a linear layer; ``mean`` and ``std`` normalise first."""

    def forward(self, images_BCHW: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Return [B, D, h, w], with the tokens contiguous in memory; ``mean`` and ``std`` are [1, C, 1, 1]."""
        height, width = self.kernel_size
        patches_BNP = cut_patches(images_BCHW, (height, width)).flatten(2)
        weight = self.weight
        if mean is not None and std is not None:
            # One pass over the pixels, from bytes to centred floats; the scale is the weights', exact where std is 0.5.
            patches_BNP = patches_BNP - mean.expand(-1, -1, height, width).flatten()
            weight = weight / std
        tokens_BND = F.linear(patches_BNP.to(weight.dtype), weight.flatten(1), self.bias)
        grid: Tensor = tokens_BND.transpose(1, 2).unflatten(2, (images_BCHW.shape[2] // height, -1))
        return grid


def embed_as_product(patch_embed: nn.Module) -> None:
    """Compute timm's patch embedding as a matrix product, where it is a plain convolution without overlap."""
    if type(patch_embed) is PatchEmbed and not patch_embed.dynamic_img_pad:
        layer = patch_embed.proj
        if type(layer) is nn.Conv2d and layer.stride == layer.kernel_size:
            layer.__class__ = PatchConv2d
