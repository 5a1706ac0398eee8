"""Bytes of an image become uint8 pixels: the train view, drawn by integers, and the evaluation view.

Shapes: B images, H and W the height and width in pixels.
"""

import io
import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.io import ImageReadMode

from mpp.config import config
from mpp.shards.hashing import hash64
from mpp.stream.order import Ints

# Only formats that Pillow decodes by itself: some others start programs.
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# A random resized crop is tried as often as torchvision does; two draws a try, two for its place, one for the flip.
CROP_TRIES = 10
NUM_DRAWS = 2 * CROP_TRIES + 3
_VIEW = 3  # keeps these draws apart from those of the order and of the masks

Box = tuple[int, int, int, int]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]


@config
class ViewConfig:
    """How an image becomes the pixels that a model sees."""

    crop: Literal["random_resized", "pad", "none"] = Field(
        "random_resized",
        description="train crop: random area and shape; shifted by up to 1/8 with mirrored edges; the evaluation view",
    )
    crop_scale: tuple[Share, Share] = Field((0.08, 1.0), description="range of a random crop's share of the area")
    crop_ratio: tuple[Ratio, Ratio] = Field((3 / 4, 4 / 3), description="range of a random crop's width / height")
    flip: bool = Field(True, description="mirror every other train view")
    crop_fraction: Share = Field(0.875, description="share of the side that the evaluation view keeps")


def view_draws(seed: int, epoch: int, ids_B: Ints) -> NDArray[np.float64]:
    """Return numbers [B, NUM_DRAWS] in [0, 1) that decide the train views of these samples in this epoch."""
    hashes = hash64(_VIEW, seed, epoch, ids_B[:, None], np.arange(NUM_DRAWS, dtype=np.int64))
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def train_view(image: bytes, settings: ViewConfig, size: tuple[int, int], draws: NDArray[np.float64]) -> Tensor:
    """Return a random view, uint8 [3, H, W] of ``size`` (H, W), decided by one row of :func:`view_draws`.

    Raises ``OSError`` or ``ValueError`` for bytes that are no image.
    """
    chances: list[float] = draws.tolist()
    if settings.crop == "random_resized":
        pixels = decode(image)
        pixels = _resized(pixels, _random_box(pixels.shape[1], pixels.shape[2], settings, chances), size)
    else:
        pixels = eval_view(image, settings, size)
        if settings.crop == "pad":
            pixels = _shifted(pixels, chances[-3], chances[-2])
    return pixels.flip(-1) if settings.flip and chances[-1] < 0.5 else pixels


def eval_view(image: bytes, settings: ViewConfig, size: tuple[int, int]) -> Tensor:
    """Return the middle of the image, uint8 [3, H, W] of ``size``; an image of that very size stays as it is.

    Raises ``OSError`` or ``ValueError`` for bytes that are no image.
    """
    pixels = decode(image)
    height, width = pixels.shape[1:]
    if (height, width) == size:
        return pixels
    scale = settings.crop_fraction * min(height / size[0], width / size[1])
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return _resized(pixels, ((height - box_height) // 2, (width - box_width) // 2, box_height, box_width), size)


def decode(image: bytes) -> Tensor:
    """Decode an image to RGB, uint8 [3, H, W]; JPEG by torchvision, what that cannot read by Pillow.

    torchvision's decoder is called as an operator: since 0.29 its function warns that it will go, and once it is gone
    Pillow does its work, at half the speed.
    """
    if image[:2] == b"\xff\xd8" and hasattr(torch.ops.image, "decode_jpeg"):
        try:
            stream = torch.frombuffer(bytearray(image), dtype=torch.uint8)
            pixels: Tensor = torch.ops.image.decode_jpeg(stream, ImageReadMode.RGB.value)
            return pixels
        except RuntimeError:
            pass
    with Image.open(io.BytesIO(image), formats=PILLOW_FORMATS) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _random_box(height: int, width: int, settings: ViewConfig, chances: list[float]) -> Box:
    """Return top, left, height and width of a random resized crop; after ten misses the largest one in the middle."""
    log_low, log_high = math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])
    low, high = settings.crop_scale
    for chance_area, chance_ratio in zip(chances[:CROP_TRIES], chances[CROP_TRIES : 2 * CROP_TRIES], strict=True):
        area = height * width * (low + (high - low) * chance_area)
        ratio = math.exp(log_low + (log_high - log_low) * chance_ratio)
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(chances[-3] * (height - box_height + 1)), int(chances[-2] * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, settings.crop_ratio[0]), settings.crop_ratio[1])
    box_height, box_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    box_height, box_width = max(1, box_height), max(1, box_width)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _resized(pixels: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """Cut a box out of [3, H, W] and bring it to ``size``, bilinear with antialiasing as Pillow does."""
    top, left, height, width = box
    cut = pixels[:, top : top + height, left : left + width]
    if (height, width) == size:
        return cut
    return F.interpolate(cut[None], size, mode="bilinear", antialias=True)[0]


def _shifted(pixels: Tensor, chance_down: float, chance_right: float) -> Tensor:
    """Shift [3, H, W] by up to an eighth of its sides; the edge that opens mirrors the image."""
    for axis, chance in ((1, chance_down), (2, chance_right)):
        side = pixels.shape[axis]
        most = side // 8
        places = (torch.arange(side) + int(chance * (2 * most + 1)) - most).abs()
        pixels = pixels.index_select(axis, torch.where(places < side, places, 2 * (side - 1) - places))
    return pixels
