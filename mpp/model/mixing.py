"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): an image mixed with the next one of its micro-batch.

How much is left of an image is a function of (seed, epoch, sample id), computed on its device as masks are. Whom it is
mixed with depends on the micro-batch, so that results depend on micro_batch and on the number of processes.

Shapes: B images of a micro-batch, K classes, H and W the height and width in pixels.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.special import betaincinv
from torch import Tensor

from mpp.config import config
from mpp.model.masking import hash64

_MIXING = 5  # keeps these draws apart from those of the order, of the views and of the masks
_POSITIVE = (1 << 63) - 1
# A hash gives the cell of the table and the place within it, which float32 holds exactly.
_CELL_BITS, _PLACE_BITS = 12, 24


@config
class Mixing:
    """How training images are mixed with others; never in evaluation."""

    mixup: float = Field(0.0, ge=0, description="alpha of Mixup, shares are Beta(alpha, alpha); 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix, likewise; with both, a coin decides for every image")


class Mixed(NamedTuple):
    """Images float32 [B, 3, H, W], and the share [B] of each that is its own; the rest is the next image's."""

    images: Tensor
    shares_B: Tensor


def mix(images: Tensor, ids_B: Tensor, settings: Mixing, *, seed: int, epoch: int | Tensor) -> Mixed:
    """Mix every image with the next one, the last with the first; ``epoch`` is one or int64 [B].

    CutMix's share is the exact one of the pixels, after its box was cut at the image's edge.
    """
    image_B = hash64(hash64(hash64(hash64(torch.full_like(ids_B, _MIXING)) + seed) + epoch) + ids_B)
    share_B, coin_B, down_B, right_B = (hash64(image_B + number) for number in range(4))
    cut_B = coin_B > 0 if settings.mixup and settings.cutmix else torch.full_like(ids_B, settings.cutmix > 0).bool()
    # An alpha of 0 is replaced by the other one: its shares are never used.
    mixup_B = beta_quantiles(share_B, settings.mixup or settings.cutmix)
    cutmix_B = beta_quantiles(share_B, settings.cutmix or settings.mixup)
    box_B1HW = _boxes(cutmix_B, down_B & _POSITIVE, right_B & _POSITIVE, images.shape[2], images.shape[3])
    own_B1HW = torch.where(cut_B[:, None, None, None], 1 - box_B1HW.float(), mixup_B[:, None, None, None])
    area_B = 1 - box_B1HW.sum(dim=(1, 2, 3)) / (images.shape[2] * images.shape[3])
    others = images.roll(-1, 0).float()
    return Mixed(others + own_B1HW * (images - others), torch.where(cut_B, area_B, mixup_B))


def mixed_cross_entropy(scores_BK: Tensor, labels_B: Tensor, shares_B: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean loss [] of mixed images against both their labels, each by its share.

    A share ``smoothing`` of each label is spread evenly over all classes (arXiv:1512.00567, section 7).
    """
    own_B = F.cross_entropy(scores_BK, labels_B, reduction="none", label_smoothing=smoothing)
    next_B = F.cross_entropy(scores_BK, labels_B.roll(-1), reduction="none", label_smoothing=smoothing)
    return (shares_B * own_B + (1 - shares_B) * next_B).mean()


def beta_quantiles(hashes_B: Tensor, alpha: float) -> Tensor:
    """Turn evenly spread int64 hashes into float32 numbers [B] distributed as Beta(alpha, alpha), by inversion.

    Interpolated in a table, so that the distribution function is off by less than one cell, 1 / 4096.
    """
    # A table made among tensors without memory, where a step is only counted, must not outlive them.
    make_table = _quantile_table if type(hashes_B) is Tensor else _quantile_table.__wrapped__
    table = make_table(alpha, hashes_B.device)
    cell_B = (hashes_B >> (64 - _CELL_BITS)) & ((1 << _CELL_BITS) - 1)
    place_B = ((hashes_B >> (64 - _CELL_BITS - _PLACE_BITS)) & ((1 << _PLACE_BITS) - 1)).float() / (1 << _PLACE_BITS)
    low_B = table[cell_B]
    return low_B + place_B * (table[cell_B + 1] - low_B)


@lru_cache(maxsize=8)
def _quantile_table(alpha: float, device: torch.device) -> Tensor:
    cells = np.linspace(0, 1, (1 << _CELL_BITS) + 1)
    return torch.from_numpy(betaincinv(alpha, alpha, cells).astype(np.float32)).to(device)


def _boxes(shares_B: Tensor, down_B: Tensor, right_B: Tensor, height: int, width: int) -> Tensor:
    """Return bool [B, 1, H, W]: boxes of an area of 1 - share, their middle anywhere, cut at the edge."""
    sides_B = (1 - shares_B).sqrt()
    inside = []
    for length, draw_B in ((height, down_B), (width, right_B)):
        size_B = (length * sides_B).long()
        first_B = draw_B % length - size_B // 2
        places = torch.arange(length, device=shares_B.device)
        inside.append((places >= first_B[:, None]) & (places < (first_B + size_B)[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
