"""Bytes of an image become uint8 pixels: the train view, drawn by integers, and the evaluation view.

Pixels are numpy arrays while one image is worked on: height, width and four channels of which the fourth means nothing,
the layout that resizing is fastest in. What leaves is red, green, blue, height and width, as a view of that.

Shapes: B images, H and W the height and width in pixels.
"""

import io
import math
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from mpp.config import config
from mpp.shards.colors import to_rgb
from mpp.shards.hashing import hash64
from mpp.stream.augment import RandAugment, rand_augment
from mpp.stream.order import Ints

# Only formats that Pillow decodes by itself: some others start programs.
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# A JPEG is decoded at one of these parts of its size where a crop is made smaller anyway. The decoder's own filter is a
# rough one, so at least so many of its pixels, along a side, remain for each pixel of the view.
PARTS = (1, 2, 4, 8)
ENOUGH = 2
MOST_PIXELS = 178_956_970  # as many as Pillow decodes; tars of others may hold anything
WHITE = (255, 255, 255)
# A random resized crop is tried as often as torchvision does; two draws a try, two for its place, one for the flip.
CROP_TRIES = 10
NUM_DRAWS = 2 * CROP_TRIES + 3
_VIEW = 3  # keeps these draws apart from those of the order and of the masks

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width
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
    squash: bool = Field(
        False, description="evaluation view, and the train views made of it, show all sides: the shape is not kept"
    )
    flip: bool = Field(True, description="mirror every other train view")
    augment: RandAugment = RandAugment()
    crop_fraction: Share = Field(0.875, description="share of the side that the evaluation view keeps")


def view_draws(seed: int, epochs_B: Ints, ids_B: Ints) -> NDArray[np.float64]:
    """Return numbers [B, NUM_DRAWS] in [0, 1) that decide the train views of these samples in these epochs."""
    hashes = hash64(_VIEW, seed, epochs_B[:, None], ids_B[:, None], np.arange(NUM_DRAWS, dtype=np.int64))
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def train_view(image: bytes | memoryview, settings: ViewConfig, size: tuple[int, int], draws: Any) -> Pixels:
    """Return a random view [3, H, W] of ``size`` (H, W), decided by one row of :func:`view_draws`.

    After its NUM_DRAWS numbers the row holds those of :func:`augment_draws`, where the settings augment.
    A JPEG whose crop is made much smaller is decoded at a half, a quarter or an eighth of its size. Raises ``OSError``
    or ``ValueError`` for bytes that are no image.
    """
    chances: list[float] = draws[:NUM_DRAWS].tolist()
    if settings.crop == "random_resized":
        whole = jpeg_size(image)
        if whole is None:
            pixels = decode(image)
            pixels = _resized(pixels, _random_box(pixels.shape[0], pixels.shape[1], settings, chances), size)
        else:
            box = _random_box(*whole, settings, chances)
            spare = min(box[2] / size[0], box[3] / size[1]) / ENOUGH
            part = max(part for part in PARTS if part == 1 or part <= spare)
            pixels = decode(image, part)
            pixels = _resized(pixels, _scaled(box, whole, pixels.shape[:2]), size)
    else:
        pixels = _middle(decode(image), settings, size)
        if settings.crop == "pad":
            pixels = _shifted(pixels, chances[-3], chances[-2])
    if settings.flip and chances[-1] < 0.5:
        pixels = pixels[:, ::-1]
    planes = pixels[..., :3].transpose(2, 0, 1)
    if not settings.augment.num_ops:
        return planes
    augmented = rand_augment(torch.from_numpy(planes.copy()), settings.augment, draws[NUM_DRAWS:])
    return np.asarray(augmented.numpy())


def eval_view(image: bytes | memoryview, settings: ViewConfig, size: tuple[int, int]) -> Pixels:
    """Return the middle of the image [3, H, W] of ``size``; an image of that very size stays as it is.

    Raises ``OSError`` or ``ValueError`` for bytes that are no image.
    """
    return _middle(decode(image), settings, size)[..., :3].transpose(2, 0, 1)


def decode(image: bytes | memoryview, part: int = 1) -> Pixels:
    """Decode an image to [H, W, 4]; JPEG by libjpeg-turbo at 1 / ``part`` of its size, all else by Pillow, whole.

    What is no RGB becomes it as it does when images are sharded, transparent pixels white. Raises ``OSError`` or
    ``ValueError`` for bytes that are no image, and for more than ``MOST_PIXELS``.
    """
    size = jpeg_size(image)
    if size is not None:
        _check_pixels(size, part)
        smaller = {} if part == 1 else {"min_height": size[0] // part, "min_width": size[1] // part, "min_factor": part}
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(image, "RGBX", **smaller)
            return pixels
        except ValueError:  # CMYK, and what is damaged in a way that Pillow may forgive
            pass
    with Image.open(io.BytesIO(image), formats=PILLOW_FORMATS) as picture:
        _check_pixels(picture.size, 1)
        return np.array(to_rgb(picture, WHITE)[0].convert("RGBX"))


def jpeg_size(image: bytes | memoryview) -> tuple[int, int] | None:
    """Return height and width from the header of a JPEG, None for what is none."""
    if image[:2] != b"\xff\xd8":
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    return height, width


def _check_pixels(size: tuple[int, int], part: int) -> None:
    if size[0] * size[1] > MOST_PIXELS * part * part:
        raise ValueError(f"{size[0]} x {size[1]} pixels, at most {MOST_PIXELS:,} are decoded")


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


def _scaled(box: Box, whole: tuple[int, int], decoded: tuple[int, int]) -> Box:
    """Return where a box of an image lies in the same image decoded smaller."""
    (top, left, height, width), (down, right) = box, (decoded[0] / whole[0], decoded[1] / whole[1])
    first_row, first_column = min(round(top * down), decoded[0] - 1), min(round(left * right), decoded[1] - 1)
    rows, columns = max(1, round(height * down)), max(1, round(width * right))
    return first_row, first_column, min(rows, decoded[0] - first_row), min(columns, decoded[1] - first_column)


def _middle(pixels: Pixels, settings: ViewConfig, size: tuple[int, int]) -> Pixels:
    """Cut the middle out of [H, W, 4] and bring it to ``size``; pixels of that very size stay as they are."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scales = (settings.crop_fraction * height / size[0], settings.crop_fraction * width / size[1])
    scales = scales if settings.squash else (min(scales), min(scales))
    box_height, box_width = max(1, round(size[0] * scales[0])), max(1, round(size[1] * scales[1]))
    return _resized(pixels, ((height - box_height) // 2, (width - box_width) // 2, box_height, box_width), size)


def _resized(pixels: Pixels, box: Box, size: tuple[int, int]) -> Pixels:
    """Cut a box out of [H, W, 4] and bring it to ``size``, bilinear with antialiasing as Pillow does."""
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    if (height, width) == size:
        return cut
    planes = torch.from_numpy(cut)[None].permute(0, 3, 1, 2)  # seen as channels last, in and out
    resized = F.interpolate(planes, size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _shifted(pixels: Pixels, chance_down: float, chance_right: float) -> Pixels:
    """Shift [H, W, 4] by up to an eighth of its sides; the edge that opens mirrors the image."""
    for axis, chance in ((0, chance_down), (1, chance_right)):
        side = pixels.shape[axis]
        most = side // 8
        pixels = pixels.take(_mirrored(side, int(chance * (2 * most + 1)) - most), axis)
    return pixels


@lru_cache(maxsize=1024)
def _mirrored(side: int, shift: int) -> Ints:
    """Return the rows that a shift brings to the places 0 to ``side``, mirrored at the edges."""
    places = np.abs(np.arange(side) + shift)
    return np.where(places < side, places, 2 * (side - 1) - places)
