"""The policy table of the format, case by case, on files made here."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mpp.shards.images import Accepted, ImagePolicy, Refused, accept, strip_metadata

POLICY = ImagePolicy()
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = Image.fromarray(np.linspace(0, 255, 30 * 20 * 3).reshape(20, 30, 3).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def taken(raw: bytes, policy: ImagePolicy = POLICY) -> tuple[Accepted, np.ndarray[Any, Any]]:
    outcome = accept(raw, policy)
    assert isinstance(outcome, Accepted), outcome
    stored = Image.open(io.BytesIO(outcome.image))
    assert stored.mode == "RGB" and stored.size == outcome.size
    assert stored.format == {"jpg": "JPEG", "png": "PNG"}[policy.format]
    return outcome, np.asarray(stored).astype(int)


def refused(raw: bytes, policy: ImagePolicy = POLICY) -> str:
    outcome = accept(raw, policy)
    assert isinstance(outcome, Refused)
    assert outcome.detail
    return outcome.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


JPEG = encoded(Image.fromarray(NOISE), "JPEG")
PNG = encoded(Image.fromarray(NOISE), "PNG")


def test_a_good_jpeg_passes_byte_for_byte() -> None:
    outcome, _ = taken(JPEG)
    assert outcome == Accepted(JPEG, (30, 20), (30, 20), ())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "not_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:20], "truncated"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "corrupt"),
        (JPEG[:3], "corrupt"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_reason(raw: bytes, reason: str) -> None:
    assert refused(raw) == reason


def test_a_png_of_which_only_a_checksum_is_wrong_is_corrupt() -> None:
    begin = PNG.index(b"IDAT")
    end = begin + 4 + struct.unpack(">I", PNG[begin - 4 : begin])[0]
    assert refused(PNG[:end] + bytes(4) + PNG[end + 4 :]) == "corrupt"


def test_a_bomb_is_refused_from_its_header_and_small_or_long_images_by_option() -> None:
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    assert refused(bomb + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")) == "too_large"
    assert refused(JPEG, ImagePolicy(max_pixels=599)) == "too_large"
    assert isinstance(accept(JPEG, ImagePolicy(max_pixels=600, min_side=20, max_aspect=1.5)), Accepted)
    assert refused(JPEG, ImagePolicy(min_side=21)) == "too_small"
    assert refused(JPEG, ImagePolicy(max_aspect=1.49)) == "aspect"


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_and_are_counted(mode: str) -> None:
    image = SMOOTH.convert(mode)
    format = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    outcome, pixels = taken(encoded(image, format), ImagePolicy(format="png"))
    assert outcome.notes == (f"mode_{mode}", "encoded_png")
    assert np.abs(pixels - np.asarray(image.convert("RGB")).astype(int)).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    raw = encoded(image.quantize(4) if mode == "P" else image.convert(mode), "PNG")
    outcome, pixels = taken(raw, ImagePolicy(format="png"))
    assert outcome.notes[0] == f"alpha_{mode}"
    assert pixels[:, :8].max() == 0 and pixels[:, 8:].min() == 255


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_deep_gray_is_scaled_by_its_depth(format: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    _, pixels = taken(encoded(Image.fromarray(ramp), format), ImagePolicy(format="png"))
    assert np.abs(pixels[0, :, 0] - np.arange(256)).max() <= 1


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        raw = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
        outcome, pixels = taken(raw)
        assert outcome.notes[0] == "first_frame"
        assert pixels[4, 4, 0] > 200 and pixels[4, 4, 2] < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_metadata_dropped(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    outcome, pixels = taken(encoded(SMOOTH, "JPEG", exif=exif, quality=95))
    assert outcome.original_size == (30, 20)
    assert outcome.size == ((30, 20) if orientation < 5 else (20, 30))
    assert b"Exif" not in outcome.image
    upright = np.asarray(SMOOTH).astype(int)
    if orientation >= 5:
        upright = upright.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    assert np.abs(pixels - upright).mean() < 3


def test_exif_and_profile_are_stripped_without_touching_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 200
    raw = encoded(Image.fromarray(NOISE), "JPEG", exif=exif, icc_profile=b"\0" * 100_000)
    outcome, pixels = taken(raw)
    assert outcome.notes == ("stripped",)
    assert len(outcome.image) < len(raw) - 100_000
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(raw))))
    assert strip_metadata(outcome.image) == outcome.image


def test_broken_exif_does_not_cost_the_image() -> None:
    outcome, _ = taken(encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert outcome.notes == ("stripped",)


@pytest.mark.parametrize(("side", "size"), [(10, (15, 10)), (7, (10, 7)), (20, (30, 20)), (99, (30, 20))])
def test_the_shorter_side_is_resized_and_never_enlarged(side: int, size: tuple[int, int]) -> None:
    outcome, _ = taken(JPEG, ImagePolicy(resize=side))
    assert outcome.size == size and outcome.original_size == (30, 20)
    assert (outcome.image == JPEG) == (size == (30, 20))


def test_neither_settings_of_pillow_nor_warnings_leak() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        accept(JPEG, ImagePolicy(max_pixels=400))
        accept(b"\0", POLICY)
    assert not seen
    assert before == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_raises(seed: int) -> None:
    rng = np.random.default_rng(seed)
    damaged = bytearray([JPEG, PNG, encoded(SMOOTH, "TIFF"), encoded(SMOOTH, "GIF")][seed % 4])
    for position in rng.integers(0, len(damaged), 8).tolist():
        damaged[position] ^= int(rng.integers(1, 256))
    assert isinstance(accept(bytes(damaged), POLICY), Accepted | Refused)
