"""Sizes of published ViTs that timm does not name: what `vit.name` may also be.

Scaling ViT (arXiv:2106.04560, Tab. 2) has the sizes s, Ti, S, B, L, g and G. timm names vit_tiny_patch16_224,
vit_small_patch32_224, vit_small_patch16_224, vit_base_patch32_224, vit_base_patch16_224, vit_large_patch16_224,
vit_giant_patch14_224 (g/14) and vit_gigantic_patch14_224 (G/14), as wide, deep and so on as in the authors' code
(big_vision, models/vit.py), which lacks s. Size s is from memory: it gives the 5.4 M (s/28) and 5.0 M (s/16)
parameters of the table; its number of heads, which changes none, could not be checked.
ViT-22B (arXiv:2302.05442, Tab. 1) is from memory too: its blocks have the 21,743 M parameters of that table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What a name means, in the words of `VitConfig`; the MLP is four times as wide as the tokens."""

    patch_size: int
    width: int
    depth: int
    heads: int
    parallel: bool | None = None
    qk_norm: bool | None = None
    bias: bool | None = None


SIZES = {
    "vit_s_patch28_224": Size(28, 256, 6, 8),
    "vit_s_patch16_224": Size(16, 256, 6, 8),
    "vit_base_patch28_224": Size(28, 768, 12, 12),
    "vit_22b_patch14_224": Size(14, 6144, 48, 48, parallel=True, qk_norm=True, bias=False),
}
