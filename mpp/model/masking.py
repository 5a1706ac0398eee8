"""Which patches are corrupted, and what replaces them: half of the patches, 80/10/10 (ViT, appendix B.1.2).

Everything is drawn by an integer hash of (seed, epoch, sample id, patch) on the device of the tokens, so that
CPU and GPU, one process and eight, now and after a resume, corrupt the same patches in the same way.

Shapes: B images, N patches, D width, M corrupted patches an image, ordered as masked, other, kept.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mpp.config import config
from mpp.errors import ConfigError


class Counts(NamedTuple):
    """How many patches of an image become the mask token, another patch, or stay but are predicted."""

    masked: int
    other: int
    kept: int


class Corruption(NamedTuple):
    """Positions [B, M] of the corrupted patches, and the sources [B, counts.other] of the replaced ones."""

    positions_BM: Tensor
    sources_BO: Tensor
    counts: Counts


@config
class RandomMask:
    """Corrupt patches drawn uniformly without replacement, the same exact number in every image."""

    kind: Literal["random"] = "random"
    ratio: float = Field(0.5, gt=0, le=1, description="share of the patches that are corrupted")
    masked: float = Field(0.8, ge=0, le=1, description="share of those that become the mask token")
    other: float = Field(
        0.1, ge=0, le=1, description="share of those that become another patch of the image; the rest stay"
    )

    def counts(self, num_patches: int) -> Counts:
        """Return the exact counts for an image of ``num_patches``, halves rounded up."""
        if self.masked + self.other > 1 + 1e-9:
            raise ConfigError(f"mask: masked + other = {self.masked + self.other:g}, at most 1")
        total = max(1, int(self.ratio * num_patches + 0.5))
        masked = min(total, int(self.masked * total + 0.5))
        other = min(total - masked, int(self.other * total + 0.5)) if num_patches > 1 else 0
        return Counts(masked, other, total - masked - other)

    def draw(self, ids_B: Tensor, num_patches: int, *, seed: int, epoch: int | Tensor) -> Corruption:
        """Draw the corruption of the images with these sample ids (int64), each in its epoch (int64 [B], or one)."""
        counts = self.counts(num_patches)
        patches_N = torch.arange(num_patches, device=ids_B.device)
        image_B1 = hash64(hash64(hash64(torch.full_like(ids_B, seed)) + epoch) + ids_B)[:, None]
        order_BN = torch.argsort(hash64(image_B1 + patches_N), dim=1, stable=True)
        replaced_BO = order_BN[:, counts.masked : counts.masked + counts.other]
        # A step of 1 .. N - 1 patches onwards, round the end: never the patch itself.
        steps_BO = 1 + (hash64(image_B1 - 1 - replaced_BO) & _POSITIVE) % max(1, num_patches - 1)
        return Corruption(order_BN[:, : sum(counts)], (replaced_BO + steps_BO) % num_patches, counts)


Mask = RandomMask


def corrupt(tokens_BND: Tensor, mask_token_D: Tensor, corruption: Corruption) -> Tensor:
    """Return the tokens with the corrupted ones replaced; replacements come from the uncorrupted tokens."""
    masked, other, _ = corruption.counts
    batch, _, width = tokens_BND.shape
    replacements = torch.cat(
        [
            mask_token_D.to(tokens_BND.dtype).expand(batch, masked, width),
            tokens_BND.gather(1, corruption.sources_BO[..., None].expand(-1, -1, width)),
        ],
        dim=1,
    )
    positions = corruption.positions_BM[:, : masked + other, None].expand(-1, -1, width)
    return tokens_BND.scatter(1, positions, replacements)


_POSITIVE = (1 << 63) - 1


def hash64(x: Tensor) -> Tensor:
    """Mix int64 numbers into evenly spread int64 numbers (the finaliser of SplitMix64), the same on any device."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
