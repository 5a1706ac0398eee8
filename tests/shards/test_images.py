"""The policy table of the format, case by case, on files made here; then the odd files, memory and damage."""

import contextlib
import io
import random
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from mpp.errors import ConfigError
from mpp.shards import images
from mpp.shards.images import Accepted, ImagePolicy, Refused, accept, refused_by_bytes
from mpp.shards.jpeg import MAX_SCANS
from mpp.sources.entries import UNKNOWN

POLICY = ImagePolicy()
LOSSLESS = ImagePolicy(format="png")
NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = Image.fromarray(np.linspace(0, 255, 30 * 20 * 3).reshape(20, 30, 3).astype(np.uint8))
Pixels = np.ndarray[Any, Any]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def taken(raw: bytes, policy: ImagePolicy = POLICY) -> tuple[Accepted, Pixels]:
    outcome = accept(raw, policy)
    assert isinstance(outcome, Accepted), outcome
    stored = Image.open(io.BytesIO(outcome.image))
    assert stored.mode == "RGB" and stored.size == outcome.size
    assert stored.format == {"jpg": "JPEG", "png": "PNG"}[policy.format]
    return outcome, np.asarray(stored).astype(int)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, kind: int = 2, depth: int = 8) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))


def wrong_checksum(png: bytes) -> bytes:
    begin = png.index(b"IDAT")
    end = begin + 4 + struct.unpack(">I", png[begin - 4 : begin])[0]
    return png[:end] + bytes(4) + png[end + 4 :]


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)


def half_clear(mode: str) -> bytes:
    """A PNG that is clear on the left and black on the right."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 16))
    return encoded(image.quantize(4) if mode == "P" else image.convert(mode), "PNG")


def two_sides(left: tuple[int, int, int], right: tuple[int, int, int]) -> Pixels:
    return np.array([left] * 8 + [right] * 8)[None].repeat(16, 0)


def rgb(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(int)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(SMOOTH, "JPEG", exif=exif, quality=95)


def segment(code: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(payload) + 2) + payload


def rare_jpeg(frame: int, tables: bytes, first: int, last: int, data: bytes) -> bytes:
    """A JPEG of 30x20 whose three components R, G and B are all in one scan."""
    sizes = struct.pack(">BHHB", 8, 20, 30, 3) + b"".join(bytes([component, 0x11, 0]) for component in b"RGB")
    scan = bytes([3, *b"R\0G\0B\0", first, last, 0])
    return b"\xff\xd8" + tables + segment(frame, sizes) + segment(0xDA, scan) + data + b"\xff\xd9"


JPEG, PNG = encoded(Image.fromarray(NOISE), "JPEG"), encoded(Image.fromarray(NOISE), "PNG")
EXIF_AND_ICC = encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=bytes(99_999))
RAMP = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
PNG_16_BIT = encoded(Image.fromarray(np.array([[0x1234] * 8 + [0x1235] * 8] * 16, np.uint16)), "PNG")
GRAY = np.arange(256)[None, :, None].repeat(4, 0).repeat(3, 2)
END = JPEG[-2:]
RED = np.array([[[254, 0, 0]]])
WHITE, BLACK, GREEN = (255, 255, 255), (0, 0, 0), (0, 255, 0)
GRAY_128 = np.full((20, 30, 3), 128)
JPEG_PIXELS = rgb(Image.open(io.BytesIO(JPEG)))
BOMB = png_header(60_000, 60_000) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
CMYK = encoded(SMOOTH.convert("CMYK"), "JPEG")
ICON = encoded(SMOOTH.resize((16, 16)), "ICO")
MOVIE = b"\xff\xda" * (MAX_SCANS + 1)  # looks like many scans
# In the lossless one each bit says "as the pixel before"; an arithmetic coder without data has nothing to add either.
LOSSLESS_JPEG = rare_jpeg(0xC3, segment(0xC4, b"\0\1" + bytes(16)), 1, 0, bytes(30 * 20 * 3 // 8))
ARITHMETIC_JPEG = rare_jpeg(0xC9, segment(0xDB, b"\0" + b"\1" * 64), 0, 63, b"")
PROGRESSIVE = encoded(Image.fromarray(NOISE), "JPEG", progressive=True)
CLEAR_16_BIT = PNG_16_BIT[:33] + png_chunk(b"tRNS", b"\x12\x34") + PNG_16_BIT[33:]
WIDE = encoded(Image.new("L", (65_501, 2)), "PNG")


class Row(NamedTuple):
    """A row of the policy table: a file, options, and the reason to refuse it or the notes and the pixels."""

    raw: bytes
    policy: ImagePolicy
    outcome: str | tuple[str, ...]
    pixels: Pixels | None = None
    tolerance: float = 0.0


TABLE = {
    "truncated JPEG": Row(JPEG[: len(JPEG) // 2], POLICY, "truncated"),
    "truncated JPEG, header check": Row(JPEG[: len(JPEG) // 2], ImagePolicy(check="header"), "truncated"),
    "truncated JPEG, resized": Row(JPEG[: len(JPEG) // 2], ImagePolicy(resize=9), "truncated"),
    "JPEG without its end": Row(JPEG[:-1], ImagePolicy(check="header"), "truncated"),
    "JPEG cut and ended": Row(JPEG[: len(JPEG) * 3 // 4] + END, POLICY, "truncated"),
    "JPEG cut and ended, upside down": Row(oriented(3)[:-40] + END, POLICY, "truncated"),
    "JPEG cut and ended, resized": Row(JPEG[: len(JPEG) * 3 // 4] + END, ImagePolicy(resize=9), "truncated"),
    "JPEG cut before its last scan": Row(PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + END, POLICY, "truncated"),
    "stub of a JPEG": Row(JPEG[:3], POLICY, "corrupt"),
    "truncated PNG": Row(PNG[: len(PNG) // 2], POLICY, "truncated"),
    "PNG cut in its header": Row(PNG[:20], POLICY, "truncated"),
    "PNG with a flipped bit": Row(PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], POLICY, "corrupt"),
    "PNG of which only a checksum is wrong": Row(wrong_checksum(PNG), POLICY, "corrupt"),
    "0 bytes": Row(b"", POLICY, "empty"),
    "HTML": Row(b"<html><body>404</body></html>", POLICY, "not_image"),
    "SVG": Row(b"<svg xmlns='http://www.w3.org/2000/svg'/>", POLICY, "not_image"),
    "PostScript": Row(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", POLICY, "not_image"),
    "good JPEG": Row(JPEG, POLICY, (), JPEG_PIXELS),
    "good JPEG, header check": Row(JPEG, ImagePolicy(check="header"), (), JPEG_PIXELS),
    "good JPEG as PNG": Row(JPEG, LOSSLESS, ("encoded_png",), JPEG_PIXELS),
    "good PNG as JPEG": Row(encoded(SMOOTH, "PNG"), POLICY, ("encoded_jpg",), rgb(SMOOTH), 2),
    "lossless JPEG": Row(LOSSLESS_JPEG, POLICY, ("encoded_jpg",), GRAY_128),
    "arithmetic JPEG": Row(ARITHMETIC_JPEG, POLICY, ("encoded_jpg",), rgb(Image.open(io.BytesIO(ARITHMETIC_JPEG))), 1),
    "CMYK": Row(CMYK, LOSSLESS, ("mode_CMYK", "encoded_png"), rgb(Image.open(io.BytesIO(CMYK)))),
    **{
        mode: Row(
            encoded(SMOOTH.convert(mode), format),
            LOSSLESS,
            (f"mode_{mode}", "encoded_png"),
            rgb(SMOOTH.convert(mode)),
        )
        for mode, format in [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("YCbCr", "TIFF")]
    },
    "gray JPEG": Row(
        encoded(SMOOTH.convert("L"), "JPEG"), POLICY, ("mode_L", "encoded_jpg"), rgb(SMOOTH.convert("L")), 3
    ),
    **{
        f"alpha {mode}": Row(half_clear(mode), LOSSLESS, (f"alpha_{mode}", "encoded_png"), two_sides(WHITE, BLACK))
        for mode in ("RGBA", "LA", "P")
    },
    "alpha on green": Row(
        half_clear("RGBA"),
        ImagePolicy(format="png", background=GREEN),
        ("alpha_RGBA", "encoded_png"),
        two_sides(GREEN, BLACK),
    ),
    **{
        f"16-bit gray {format}": Row(
            encoded(Image.fromarray(RAMP), format), LOSSLESS, (f"mode_{mode}", "encoded_png"), GRAY, 1
        )
        for format, mode in [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")]
    },
    "16-bit gray PNG with a clear value": Row(
        CLEAR_16_BIT,
        ImagePolicy(format="png", background=GREEN),
        ("alpha_I;16", "encoded_png"),
        two_sides(GREEN, (18, 18, 18)),
    ),
    **{
        f"animated {format}": Row(animation(format), LOSSLESS, ("first_frame", *mode, "encoded_png"), RED, 2)
        for format, mode in [("GIF", ("mode_P",)), ("WEBP", ()), ("PNG", ())]
    },
    **{
        f"animated {format}, refused": Row(animation(format), ImagePolicy(animated="refuse"), "animated")
        for format in ("GIF", "WEBP", "PNG")
    },
    "still GIF is no animation": Row(
        encoded(SMOOTH.convert("L"), "GIF"),
        ImagePolicy(format="png", animated="refuse"),
        ("mode_P", "encoded_png"),
        rgb(SMOOTH.convert("L")),
    ),
    **{
        f"orientation {number}": Row(oriented(number), POLICY, ("upright", "encoded_jpg"), rgb(upright), 3)
        for number, upright in [
            (2, SMOOTH.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
            (3, SMOOTH.rotate(180)),
            (4, SMOOTH.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
            (5, SMOOTH.transpose(Image.Transpose.TRANSPOSE)),
            (6, SMOOTH.rotate(-90, expand=True)),
            (7, SMOOTH.transpose(Image.Transpose.TRANSVERSE)),
            (8, SMOOTH.rotate(90, expand=True)),
        ]
    },
    "orientation 1": Row(oriented(1), POLICY, ("stripped",), rgb(Image.open(io.BytesIO(oriented(1))))),
    "broken EXIF, giant ICC": Row(EXIF_AND_ICC, POLICY, ("stripped",), JPEG_PIXELS),
    "bomb": Row(BOMB, POLICY, "too_large"),
    "one pixel too many": Row(JPEG, ImagePolicy(max_pixels=599), "too_large"),
    "as many pixels as allowed": Row(JPEG, ImagePolicy(max_pixels=600), (), JPEG_PIXELS),
    "a scan for ever": Row(JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") : -2] * MAX_SCANS + END, POLICY, "too_large"),
    "photo with a movie after it": Row(JPEG + MOVIE, POLICY, ("stripped",), JPEG_PIXELS),
    "upside down photo with a movie after it": Row(
        oriented(3) + MOVIE, POLICY, ("upright", "encoded_jpg"), rgb(SMOOTH.rotate(180)), 3
    ),
    "longer than a JPEG can be": Row(WIDE, ImagePolicy(max_aspect=1e9), "too_large"),
    "longer than a JPEG can be, but small enough at last": Row(
        WIDE, ImagePolicy(max_aspect=1e9, resize=1), ("mode_L", "resized", "encoded_jpg"), np.zeros((1, 32_750, 3))
    ),
    "longer than a JPEG can be, stored as PNG": Row(
        WIDE, ImagePolicy(max_aspect=1e9, format="png"), ("mode_L", "encoded_png"), np.zeros((2, 65_501, 3))
    ),
    "long, and damaged in its tables": Row(
        JPEG.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x10"), ImagePolicy(max_aspect=1.49), "aspect"
    ),
    "short side": Row(JPEG, ImagePolicy(min_side=21), "too_small"),
    "short side, just": Row(JPEG, ImagePolicy(min_side=20), (), JPEG_PIXELS),
    "long": Row(JPEG, ImagePolicy(max_aspect=1.49), "aspect"),
    "long, just": Row(JPEG, ImagePolicy(max_aspect=1.5), (), JPEG_PIXELS),
    "floats": Row(encoded(SMOOTH.convert("F"), "TIFF"), POLICY, "unsupported"),
    "a format beyond the list": Row(ICON, POLICY, "not_image"),
    "a format beyond the list, allowed": Row(
        ICON, ImagePolicy(format="png", formats=("ICO",)), ("encoded_png",), rgb(SMOOTH.resize((16, 16))), 1
    ),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_policy_table(row: Row) -> None:
    if isinstance(row.outcome, str):
        outcome = accept(row.raw, row.policy)
        assert isinstance(outcome, Refused)
        assert (outcome.reason, bool(outcome.detail)) == (row.outcome, True)
        return
    accepted, pixels = taken(row.raw, row.policy)
    assert accepted.notes == row.outcome
    assert row.pixels is not None
    assert pixels.shape == row.pixels.shape or row.pixels.size == 3
    assert np.abs(pixels - row.pixels).mean() <= row.tolerance


def test_a_good_jpeg_passes_byte_for_byte() -> None:
    expected = Accepted(JPEG, (30, 20), (30, 20), (), "JPEG", "RGB")
    assert accept(JPEG, POLICY) == accept(JPEG, ImagePolicy(check="header")) == expected


def test_the_format_and_the_mode_of_the_source_are_told() -> None:
    for image, format in [(SMOOTH.convert("L"), "JPEG"), (SMOOTH.convert("RGBA"), "PNG"), (SMOOTH, "WEBP")]:
        for policy in (POLICY, ImagePolicy(resize=10)):
            outcome, _ = taken(encoded(image, format), policy)
            assert (outcome.source_format, outcome.source_mode) == (format, image.mode)


def test_what_a_header_check_cannot_see_a_full_decode_does() -> None:
    table = JPEG.index(b"\xff\xc4")
    damaged = JPEG[: table + 5] + b"\xff" * 4 + JPEG[table + 9 :]  # more codes than a Huffman table can have
    assert isinstance(accept(damaged, ImagePolicy(check="header")), Accepted)
    assert isinstance(accept(damaged, POLICY), Refused)
    assert isinstance(accept(damaged, ImagePolicy(check="header", resize=10)), Refused)


def test_a_refusal_says_the_same_each_time() -> None:
    tables = JPEG.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x10")
    for raw in (tables, PNG[:20], JPEG[:9], BOMB, b"BM"):
        outcome = accept(raw, POLICY)
        assert isinstance(outcome, Refused) and outcome == accept(raw, POLICY)
        assert " at 0x" not in outcome.detail


def test_files_too_large_or_empty_are_refused_by_their_size_alone() -> None:
    assert refused_by_bytes(UNKNOWN, POLICY) is None
    assert refused_by_bytes(1, POLICY) is None
    assert refused_by_bytes(POLICY.max_bytes, POLICY) is None
    refused = refused_by_bytes(POLICY.max_bytes + 1, POLICY)
    assert refused is not None and refused.reason == "too_large"
    assert refused == accept(bytes(POLICY.max_bytes + 1), POLICY)
    assert refused_by_bytes(0, POLICY) == accept(b"", POLICY)
    assert ImagePolicy(max_pixels=200_000_000).max_bytes > POLICY.max_bytes


def test_nothing_of_the_metadata_comes_along() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    icc = b"secret" * 50
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        raw = encoded(SMOOTH, format, exif=exif, icc_profile=icc, comment="secret", xmp=b"secret")
        assert b"secret" in raw
        for policy in (ImagePolicy(resize=10), LOSSLESS, ImagePolicy(resize=10, format="png")):
            assert b"secret" not in taken(raw, policy)[0].image


def test_a_background_that_is_no_color_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"background: \[0, 256, 0\]"):
        ImagePolicy(background=(0, 256, 0))


def test_unknown_formats_and_those_that_run_programs_cannot_be_allowed() -> None:
    for name in ("EPS", "SVG", "ico"):
        with pytest.raises(ConfigError, match=f"formats: '{name}'.*\n.*choose among .*ICO"):
            ImagePolicy(formats=("ICO", name))


@pytest.mark.parametrize(("side", "size"), [(10, (15, 10)), (7, (10, 7)), (20, (30, 20)), (99, (30, 20))])
@pytest.mark.parametrize("raw", [JPEG, PNG, encoded(SMOOTH.convert("L"), "JPEG")])
def test_the_shorter_side_is_resized_and_never_enlarged(raw: bytes, side: int, size: tuple[int, int]) -> None:
    outcome, _ = taken(raw, ImagePolicy(resize=side))
    assert outcome.size == size and outcome.original_size == (30, 20)
    assert ("resized" in outcome.notes) == (size != (30, 20))


def test_neither_settings_of_pillow_nor_warnings_leak(caplog: pytest.LogCaptureFixture) -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        accept(JPEG, ImagePolicy(max_pixels=400))
        accept(b"\0", POLICY)
        tiff = encoded(SMOOTH, "TIFF")
        samples = struct.pack("<HHIH", 277, 3, 1, 3)
        assert samples in tiff
        accept(tiff.replace(samples, samples[:-2] + b"\xff\0"), POLICY)
    assert not seen and not caplog.records
    assert before == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def verdict(raw: bytes, policy: ImagePolicy) -> tuple[Any, ...]:
    outcome = accept(raw, policy)
    if isinstance(outcome, Refused):
        return (outcome.reason,)
    return (outcome.size, outcome.original_size, outcome.notes, outcome.source_format, outcome.source_mode)


def assert_both_roads_agree(raw: bytes, policy: ImagePolicy) -> None:
    fast = verdict(raw, policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "fast_road", lambda *_: None)
        assert fast == verdict(raw, policy)


def test_a_jpeg_cut_anywhere_and_ended_is_truncated() -> None:
    scan = JPEG.index(b"\xff\xda") + 14
    for policy in (POLICY, ImagePolicy(resize=10)):
        outcomes = [accept(JPEG[:length] + END, policy) for length in range(scan, len(JPEG) - 24)]  # two blocks
        assert {getattr(outcome, "reason", "taken") for outcome in outcomes} == {"truncated"}


@pytest.mark.parametrize("progressive", [False, True])
def test_both_roads_agree_on_files_cut_anywhere(progressive: bool) -> None:
    raw = encoded(Image.fromarray(NOISE), "JPEG", progressive=progressive)
    for length in range(1, len(raw), 7):
        for end in (b"", END):
            assert_both_roads_agree(raw[:length] + end, ImagePolicy(resize=10))
            assert_both_roads_agree(raw[:length] + end, POLICY)


def damage(raw: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(chance.randint(1, 6)):
        place = min(chance.randrange(len(damaged)), chance.randrange(len(damaged)))  # headers more often
        damaged[place] = chance.choice([0, 255, damaged[place] ^ 1 << chance.randrange(8)])
    return bytes(damaged[: chance.choice([len(damaged), chance.randrange(1, len(damaged))])])


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.sampled_from([JPEG, EXIF_AND_ICC[:1000] + EXIF_AND_ICC[-3000:], CMYK]))
def test_both_roads_agree_on_damaged_files(chance: random.Random, raw: bytes) -> None:
    for policy in (POLICY, ImagePolicy(resize=10)):
        assert_both_roads_agree(damage(raw, chance), policy)


VALID = [
    *(encoded(SMOOTH, format) for format in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF")),
    *(encoded(SMOOTH, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    *(animation(format) for format in ("GIF", "WEBP", "PNG", "AVIF")),
]


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.sampled_from(VALID), st.sampled_from([None, 10]))
def test_damage_ends_as_taken_or_refused_without_a_word(
    capfd: pytest.CaptureFixture[str], chance: random.Random, raw: bytes, resize: int | None
) -> None:
    assert isinstance(accept(damage(raw, chance), ImagePolicy(resize=resize, format="png")), Accepted | Refused)
    assert capfd.readouterr() == ("", "")


def checksums_hold(png: bytes) -> bool:
    place = 8
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        data = png[place + 8 : place + 8 + length]
        if png_chunk(kind, data) != png[place : place + 12 + length]:
            return False
        if kind == b"IEND":
            break
        place += 12 + length
    return True


def reading(name: str, raw: bytes) -> str | Pixels:
    """Return why a file must be refused, or its pixels, from the policy and Pillow alone."""
    known = (
        rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II[*+]\0|MM\0[*+]|P[1-6]|\0\0\0\x0cjP|\xff\x4f\xff|RIFF....WEBP|....ftypavi[fs]"
    )
    if re.match(known, raw, re.DOTALL) is None:
        return "not_image"
    if Path(name).name in ("truncated_image.png", "truncated_jpeg.jpg", "shortfile.bmp", "ultrahdr.jpg"):
        return "truncated"  # the last one is cut short in this collection
    if Path(name).name in ("reallybig.bmp", "decompression_bomb.gif", "l2rgb_read.bmp"):
        return "too_large"
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(raw))
            image.load()
    except Exception:
        return "corrupt"
    if image.mode == "LAB":
        return "unsupported"
    if image.format == "PNG" and not checksums_hold(raw):
        return "corrupt"
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(int) / 257
        return np.floor(gray + 0.5).astype(int)[..., None].repeat(3, 2)
    with contextlib.suppress(Exception):  # broken EXIF
        image = ImageOps.exif_transpose(image)
    layer = image.convert("RGBA")
    return rgb(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer))


def odd_files(data: Path) -> dict[str, bytes]:
    root = data / "odd-images"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_every_odd_file_ends_as_the_policy_reads(data: Path) -> None:
    files = odd_files(data)
    assert len(files) > 300
    for name, raw in files.items():
        outcome, expected = accept(raw, LOSSLESS), reading(name, raw)
        if isinstance(outcome, Refused) or isinstance(expected, str):
            assert (name, getattr(outcome, "reason", "taken")) == (name, expected)
        else:
            stored = rgb(Image.open(io.BytesIO(outcome.image)))
            assert stored.shape == expected.shape and np.abs(stored - expected).max() <= 1, name


def test_both_roads_agree_on_every_odd_file(data: Path) -> None:
    for raw in odd_files(data).values():
        for policy in (POLICY, ImagePolicy(check="header"), ImagePolicy(resize=48)):
            assert_both_roads_agree(raw, policy)
