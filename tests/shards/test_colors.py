"""Every mode comes out as the RGB that it shows, in pieces as in one."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpp.shards import colors
from mpp.shards.colors import Unsupported, to_rgb

WHITE, GREEN = (255, 255, 255), (0, 255, 0)
RAMP = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
GRAY = np.arange(256)[None, :, None].repeat(4, 0).repeat(3, 2)


def reopened(image: Image.Image, format: str, **options: Any) -> Image.Image:
    target = io.BytesIO()
    image.save(target, format, **options)
    again = Image.open(target)
    again.load()
    return again


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_rgb_stays_as_it_is() -> None:
    image = Image.radial_gradient("L").convert("RGB")
    assert to_rgb(image, WHITE) == (image, [])


@pytest.mark.parametrize(("photometric", "expected"), [(0, 255 - GRAY), (1, GRAY)])
def test_white_of_a_tiff_may_be_zero(photometric: int, expected: np.ndarray[Any, Any]) -> None:
    image, _ = to_rgb(reopened(Image.fromarray(RAMP), "TIFF", tiffinfo={262: photometric}), WHITE)
    assert np.abs(pixels(image) - expected).max() <= 1


def test_a_value_of_deep_gray_may_be_clear() -> None:
    deep = np.array([[0x1234, 0x1235], [0xFFFF, 0x1234]], np.uint16)
    image = reopened(Image.fromarray(deep), "PNG")
    image.info["transparency"] = 0x1234  # as Pillow reads it from tRNS
    result, notes = to_rgb(image, GREEN)
    assert notes == ["alpha_I;16"]
    assert pixels(result).tolist() == [[[0, 255, 0], [18, 18, 18]], [[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_what_has_no_agreed_colors_is_not_converted(mode: str) -> None:
    with pytest.raises(Unsupported, match=f"mode {mode}"):
        to_rgb(Image.new(mode, (3, 2)), WHITE)


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_large_images_are_converted_piece_by_piece_without_a_seam(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1)
    if mode == "RGBA":
        image = Image.fromarray(noise.integers(0, 256, (50, 40, 4), np.uint8))
    else:
        image = Image.fromarray(noise.integers(0, 65536, (50, 40), np.uint16))
    assert image.mode == mode
    whole, _ = to_rgb(image, GREEN)
    monkeypatch.setattr(colors, "STRIP_PIXELS", 7 * 40)
    pieces, _ = to_rgb(image, GREEN)
    assert np.array_equal(pixels(whole), pixels(pieces))
