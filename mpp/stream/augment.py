"""RandAugment (arXiv:1909.13719): a few operations of one strength on the pixels of a train view, drawn by integers.

The sixteen operations, each as likely, at strength s = magnitude / 10 of an image of H x W pixels; a sign is drawn:

    identity, autocontrast, equalize    no strength
    rotate                              by +-30 s degrees about the middle
    shear x, shear y                    by +-0.3 s about the upper left corner
    translate x, translate y            by +-100 / 224 s of the side
    color, contrast, brightness,
    sharpness                           factor 1 + 0.9 s
    posterize                           8 - 4 s bits
    solarize                            values from 256 (1 - s) on are inverted
    solarize add                        110 s is added to values below 128
    cutout                              a square of side 2 * 40 / 224 s of the shorter one, its middle anywhere

What geometry opens, and cutout, is gray (128); pixels are the nearest. The paper names the first fourteen, no ranges.
At magnitude 10 and 224 px these are the operations of big_vision, by which the Better plain ViT (arXiv:2205.01580) was
trained; its solarize does nothing there, as our identity, and its invert is our solarize. Below 10 they differ: some of
big_vision's get stronger as the magnitude falls (posterize, solarize), and its factors are 0.1 + 1.8 s. Ours all end at
the identity, but for autocontrast and equalize.

Shapes: B images, H and W the height and width in pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mpp.config import config
from mpp.shards.hashing import hash64
from mpp.stream.order import Ints

DRAWS_PER_OP = 4
GRAY = 128
_AUGMENT = 4  # keeps these draws apart from those of the order, of the crops and of the masks


@config
class RandAugment:
    """Random operations of one strength on a train view."""

    num_ops: int = Field(0, ge=0, description="RandAugment's operations on a train view, one after the other; 0: none")
    magnitude: float = Field(10.0, ge=0, le=10, description="their strength, 0 to 10")


class OperationDraw(NamedTuple):
    """What one operation draws: a sign, -1 or 1, and a place, as shares of the height and the width."""

    sign: int
    down: float
    right: float


Operation = Callable[[Tensor, float, OperationDraw], Tensor]


def augment_draws(seed: int, epoch: int | Ints, ids_B: Ints, settings: RandAugment) -> NDArray[np.float64]:
    """Return numbers [B, DRAWS_PER_OP * num_ops] in [0, 1) for :func:`rand_augment`; ``epoch`` is one or [B]."""
    numbers = np.arange(DRAWS_PER_OP * settings.num_ops, dtype=np.int64)
    hashes = hash64(_AUGMENT, seed, np.reshape(np.asarray(epoch, np.int64), (-1, 1)), ids_B[:, None], numbers)
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def rand_augment(pixels: Tensor, settings: RandAugment, draws: NDArray[np.float64]) -> Tensor:
    """Return uint8 [3, H, W] after the operations that one row of :func:`augment_draws` decides; the input stays."""
    chances: list[float] = draws.tolist()
    for first in range(0, DRAWS_PER_OP * settings.num_ops, DRAWS_PER_OP):
        which, sign, down, right = chances[first : first + DRAWS_PER_OP]
        operation = _IN_ORDER[int(which * len(_IN_ORDER))]
        pixels = operation(pixels, settings.magnitude / 10, OperationDraw(-1 if sign < 0.5 else 1, down, right))
    return pixels


def _moved(pixels: Tensor, *matrix: float) -> Tensor:
    """Fetch the pixel at (x, y) from (a x + b y + c, d x + e y + f): by Pillow, 8 times as fast as torchvision."""
    bands = [
        Image.fromarray(band.numpy()).transform(
            (pixels.shape[2], pixels.shape[1]),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.NEAREST,
            fillcolor=GRAY,
        )
        for band in pixels
    ]
    return torch.from_numpy(np.stack([np.asarray(band) for band in bands]))


def _rotated(pixels: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = pixels.shape[1] / 2, pixels.shape[2] / 2
    return _moved(pixels, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _sharpened(pixels: Tensor, factor: float) -> Tensor:
    """Blend with the smoothed image, but for the edge: as torchvision, whose convolution takes 20 times as long."""
    if min(pixels.shape[1:]) < 3:
        return pixels
    wide = pixels.short()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    inner = wide[:, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).float().div_(13).round_()
    result = pixels.clone()
    result[:, 1:-1, 1:-1] = torch.lerp(smooth, inner.float(), factor).clamp_(0, 255).byte()
    return result


def _solarized(pixels: Tensor, threshold: float) -> Tensor:
    # A threshold of 256 must not become a uint8, so it is a float.
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _solarized_by_adding(pixels: Tensor, addition: int) -> Tensor:
    return torch.where(pixels < 128, pixels + addition, pixels)  # 127 + 110 is below 256


def _cut_out(pixels: Tensor, half: int, down: float, right: float) -> Tensor:
    y, x = int(down * pixels.shape[1]), int(right * pixels.shape[2])
    result = pixels.clone()
    result[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = GRAY
    return result


OPERATIONS: dict[str, Operation] = {
    "identity": lambda pixels, s, draw: pixels,
    "autocontrast": lambda pixels, s, draw: F.autocontrast(pixels),
    "equalize": lambda pixels, s, draw: F.equalize(pixels),
    "rotate": lambda pixels, s, draw: _rotated(pixels, draw.sign * 30 * s),
    "shear_x": lambda pixels, s, draw: _moved(pixels, 1, draw.sign * 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda pixels, s, draw: _moved(pixels, 1, 0, 0, draw.sign * 0.3 * s, 1, 0),
    "translate_x": lambda pixels, s, draw: _moved(pixels, 1, 0, draw.sign * s * pixels.shape[2] * 100 / 224, 0, 1, 0),
    "translate_y": lambda pixels, s, draw: _moved(pixels, 1, 0, 0, 0, 1, draw.sign * s * pixels.shape[1] * 100 / 224),
    "color": lambda pixels, s, draw: F.adjust_saturation(pixels, 1 + 0.9 * s),
    "contrast": lambda pixels, s, draw: F.adjust_contrast(pixels, 1 + 0.9 * s),
    "brightness": lambda pixels, s, draw: F.adjust_brightness(pixels, 1 + 0.9 * s),
    "sharpness": lambda pixels, s, draw: _sharpened(pixels, 1 + 0.9 * s),
    "posterize": lambda pixels, s, draw: F.posterize(pixels, 8 - round(4 * s)),
    "solarize": lambda pixels, s, draw: _solarized(pixels, 256.0 * (1 - s)),
    "solarize_add": lambda pixels, s, draw: _solarized_by_adding(pixels, int(110 * s)),
    "cutout": lambda pixels, s, draw: _cut_out(
        pixels, int(s * min(pixels.shape[1:]) * 40 / 224), draw.down, draw.right
    ),
}
_IN_ORDER = tuple(OPERATIONS.values())
