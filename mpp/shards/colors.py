"""Any picture to RGB of 8 bits: depth scaled, transparency laid on a background."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Color = tuple[int, int, int]

STRIP_PIXELS = 2**18  # pixels that are converted at a time
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


class Unsupported(Exception):
    """There is no agreed way from the colors of a picture to RGB."""


def to_rgb(image: Image.Image, background: Color) -> tuple[Image.Image, list[str]]:
    """Return an RGB image and the name of the conversion, if one was needed; raise ``Unsupported``."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, []
    if mode.startswith("I"):
        clear = image.info.get("transparency")
        note = f"mode_{mode}" if clear is None else f"alpha_{mode}"
        return _in_strips(image, _gray_scaler(image, clear, background)), [note]
    if mode in ("F", "LAB"):
        raise Unsupported(f"mode {mode} has no agreed way to RGB")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _in_strips(image, lambda strip: _composited(strip, background)), [f"alpha_{mode}"]
    return image.convert("RGB"), [f"mode_{mode}"]


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB piece by piece: the steps between need memory for one piece only."""
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        result.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return result


def _composited(image: Image.Image, background: Color) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA")).convert("RGB")


def _gray_scaler(image: Image.Image, clear: int | None, background: Color) -> Callable[[Image.Image], Image.Image]:
    """Return what scales deep gray to 8 bits by the depth that ``image`` declares; Pillow clips it to white.

    Pixels of the value ``clear`` become the background.
    """
    bits, white = 16, 255
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = int(tags.get(BITS_PER_SAMPLE, (16,))[0])
        if tags.get(SAMPLE_FORMAT, (1,))[0] == 2:  # signed
            bits -= 1
        white = 0 if tags.get(PHOTOMETRIC, 1) == 0 else 255
    factor = 255.0 / (2.0**bits - 1.0)

    def scale(strip: Image.Image) -> Image.Image:
        pixels = np.asarray(strip)
        gray = np.clip(pixels.astype(np.float32) * factor + 0.5, 0, 255).astype(np.uint8)
        rgb = np.stack([gray if white else 255 - gray] * 3, axis=-1)
        if clear is not None:
            rgb[pixels == clear] = background
        return Image.fromarray(rgb)

    return scale
