"""Which patches are corrupted, one by one or in blocks, and what replaces them: 80/10/10 (ViT, appendix B.1.2).

Everything is drawn by an integer hash of (seed, epoch, sample id, patch) on the device of the tokens, so that
CPU and GPU, one process and eight, now and after a resume, corrupt the same patches in the same way.

Shapes: B images, N patches of a grid (h, w), D width, M corrupted patches an image, ordered as masked, other, kept;
K blocks, S shapes of a block.
"""

from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

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
class _Shares:
    """How much of an image is corrupted, and in which way."""

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


@config
class RandomMask(_Shares):
    """Corrupt patches drawn uniformly without replacement, the same exact number in every image."""

    kind: Literal["random"] = "random"

    def draw(self, ids_B: Tensor, grid: tuple[int, int], *, seed: int, epoch: int | Tensor) -> Corruption:
        """Draw the corruption of the images with these sample ids (int64), each in its epoch (int64 [B], or one)."""
        num_patches = grid[0] * grid[1]
        image_B1 = _hash_images(ids_B, seed, epoch)
        order_BN = _shuffle(image_B1, torch.arange(num_patches, device=ids_B.device))
        counts = self.counts(num_patches)
        return _corruption(image_B1, order_BN[:, : sum(counts)], counts, num_patches)


@config
class BlockMask(_Shares):
    """Corrupt rectangles of patches, as BEiT (arXiv:2106.08254, algorithm 1), the same exact number in every image.

    An image's blocks come one after the other, each of a uniformly drawn shape and at a uniformly drawn place, until
    together they hold enough patches. What is too much is cut from the last one, row by row from its top or its bottom.
    Shapes are all those of BEiT: not flatter or steeper than 3 : 10, from a fifth of the corrupted patches to all of
    them. Unlike there, the number of patches is exact, and shapes come from a table of integers, as floating-point
    sides would be rounded differently on a CPU and a GPU.
    """

    kind: Literal["block"] = "block"

    def draw(self, ids_B: Tensor, grid: tuple[int, int], *, seed: int, epoch: int | Tensor) -> Corruption:
        """Draw the corruption of the images with these sample ids (int64), each in its epoch (int64 [B], or one)."""
        num_patches = grid[0] * grid[1]
        image_B1 = _hash_images(ids_B, seed, epoch)
        counts = self.counts(num_patches)
        chosen_BM = _first_blocks(image_B1, grid, sum(counts))
        # Which of them are masked, replaced or kept is drawn patch by patch, not block by block.
        return _corruption(image_B1, chosen_BM.gather(1, _shuffle(image_B1, chosen_BM)), counts, num_patches)


Mask = Annotated[RandomMask | BlockMask, Field(discriminator="kind")]


def _hash_images(ids_B: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
    return hash64(hash64(hash64(torch.full_like(ids_B, seed)) + epoch) + ids_B)[:, None]


def _shuffle(image_B1: Tensor, patches: Tensor) -> Tensor:
    """Return the order [B, n] in which an image draws ``patches`` ([n], or [B, n] of its own)."""
    return torch.argsort(hash64(image_B1 + patches), dim=1, stable=True)


def _corruption(image_B1: Tensor, positions_BM: Tensor, counts: Counts, num_patches: int) -> Corruption:
    """Divide the corrupted patches, in their order, and draw what replaces those that become another one."""
    replaced_BO = positions_BM[:, counts.masked : counts.masked + counts.other]
    # A step of 1 .. N - 1 patches onwards, round the end: never the patch itself.
    steps_BO = 1 + (hash64(image_B1 - 1 - replaced_BO) & _POSITIVE) % max(1, num_patches - 1)
    return Corruption(positions_BM, (replaced_BO + steps_BO) % num_patches, counts)


def _first_blocks(image_B1: Tensor, grid: tuple[int, int], total: int) -> Tensor:
    """Return the patches [B, total] that an image's blocks meet first."""
    device, num_patches = image_B1.device, grid[0] * grid[1]
    # A table made among tensors without memory, where a step is only counted, must not outlive them.
    table = _block_shapes if type(image_B1) is Tensor else _block_shapes.__wrapped__
    shapes_S2 = table(grid, total, device)
    num_blocks = _num_blocks(grid, total)
    # Offsets from N on: those below it draw the order of the patches.
    offsets_K3 = num_patches + torch.arange(3 * num_blocks, device=device).view(-1, 3)
    shape_BK, down_BK, right_BK = (hash64(image_B1[..., None] + offsets_K3) & _POSITIVE).unbind(-1)
    height_BK, width_BK = shapes_S2[shape_BK % len(shapes_S2)].unbind(-1)
    top_BK1 = (down_BK % (grid[0] - height_BK + 1))[..., None]
    left_BK1 = (right_BK % (grid[1] - width_BK + 1))[..., None]
    patches_N = torch.arange(num_patches, device=device)
    rows_N, columns_N = patches_N // grid[1], patches_N % grid[1]
    inside_BKN = (
        (rows_N >= top_BK1)
        & (rows_N < top_BK1 + height_BK[..., None])
        & (columns_N >= left_BK1)
        & (columns_N < left_BK1 + width_BK[..., None])
    )
    numbers_K1 = torch.arange(num_blocks, device=device)[:, None]
    block_BN = torch.where(inside_BKN, numbers_K1, num_blocks).amin(dim=1)  # patches that no block meets come last
    from_top_B1 = hash64(image_B1 - 1 - num_patches) > 0
    within_BN = torch.where(from_top_B1, patches_N, num_patches - 1 - patches_N)
    return torch.argsort(block_BN * num_patches + within_BN, dim=1)[:, :total]


def _possible_shapes(grid: tuple[int, int], total: int) -> list[tuple[int, int]]:
    """List heights and widths of blocks, in patches."""
    shapes = [
        (height, width)
        for height in range(1, grid[0] + 1)
        for width in range(1, grid[1] + 1)
        if height * width <= total and 3 * max(height, width) <= 10 * min(height, width)
    ]
    least = min(total // 5, max(height * width for height, width in shapes))
    return [(height, width) for height, width in shapes if height * width >= least]


@lru_cache(maxsize=8)
def _num_blocks(grid: tuple[int, int], total: int) -> int:
    """Return how many blocks hold enough in nearly every image: eight times the patches, did they not overlap."""
    areas = [height * width for height, width in _possible_shapes(grid, total)]
    return 8 * total * len(areas) // sum(areas) + 1


@lru_cache(maxsize=8)
def _block_shapes(grid: tuple[int, int], total: int, device: torch.device) -> Tensor:
    return torch.tensor(_possible_shapes(grid, total), device=device)


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
