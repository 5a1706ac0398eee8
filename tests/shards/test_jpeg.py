"""Headers read without Pillow say what Pillow says, stripping keeps the pixels, shrinking gives Pillow's picture."""

import io
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mpp.shards.jpeg import MAX_SCANS, load_torch, read_header, shrink, strip_metadata

PICTURE = Image.radial_gradient("L").resize((90, 70))
COLORS = Image.merge("RGB", (PICTURE, PICTURE.rotate(90), PICTURE.rotate(180)))
EXIF, XMP, ICC, JFIF, ADOBE, COMMENT = 0xE1, 0xE1, 0xE2, 0xE0, 0xEE, 0xFE


def jpeg(image: Image.Image = COLORS, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


def segment(code: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(payload) + 2) + payload


def exif(orientation: int, order: str = ">", entries: int = 1, kind: int = 3) -> bytes:
    magic = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(f"{order}HHIHxx", 0x0112, kind, 1, orientation)
    return b"Exif\0\0" + magic + struct.pack(f"{order}IH", 8, entries) + entry * entries + bytes(4)


def pixels(raw: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(raw)))


JPEG = jpeg()
SCAN = JPEG.index(b"\xff\xda")


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """JPEGs as cameras, editors and web sites write them."""
    mode = draw(st.sampled_from(["RGB", "RGB", "L", "CMYK"]))
    image = COLORS.convert(mode).resize((draw(st.integers(1, 70)), draw(st.integers(1, 70))))
    options: dict[str, Any] = {"quality": draw(st.integers(5, 100)), "progressive": draw(st.booleans())}
    if mode == "RGB":
        options["subsampling"] = draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]))
    if draw(st.booleans()):
        options["restart_marker_blocks"] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = draw(st.integers(1, 8))
        tags[ExifTags.Base.Make] = "x" * draw(st.integers(0, 300))
        options["exif"] = tags
    options["icc_profile"] = bytes(draw(st.sampled_from([0, 500, 200_000]))) or None
    options["comment"] = draw(st.binary(max_size=20))
    raw = jpeg(image, **options)
    fill = b"\xff" * draw(st.integers(0, 3))
    return raw[:2] + fill + raw[2:]


@given(jpegs())
def test_the_header_says_what_pillow_says(raw: bytes) -> None:
    image = Image.open(io.BytesIO(raw))
    header = read_header(raw)
    assert header is not None
    assert header.size == image.size
    assert header.components == len(image.getbands())
    assert header.progressive == ("progressive" in image.info)
    assert header.orientation == image.getexif().get(ExifTags.Base.Orientation, 1)
    assert header.precision == 8
    assert header.plain == (image.mode != "CMYK")


@given(jpegs())
def test_stripping_takes_the_metadata_and_leaves_the_pixels(raw: bytes) -> None:
    header = read_header(raw)
    assert header is not None
    bare = strip_metadata(raw, header)
    again, image = read_header(bare), Image.open(io.BytesIO(bare))
    assert again is not None and again.metadata == ()
    assert not {"exif", "icc_profile", "xmp"} & image.info.keys()
    assert image.info.get("comment") == Image.open(io.BytesIO(raw)).info.get("comment")
    assert len(bare) + sum(end - begin for begin, end in header.metadata) == len(raw)
    assert np.array_equal(pixels(raw), np.asarray(image))


def test_metadata_between_the_scans_and_after_the_end_go_too() -> None:
    progressive = jpeg(progressive=True)
    second = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    secret = segment(0xED, b"secret")
    raw = progressive[:second] + secret + progressive[second:] + b"more secrets"
    header = read_header(raw)
    assert header is not None and header.plain
    assert strip_metadata(raw, header) == progressive


def test_the_segments_that_declare_the_colors_stay() -> None:
    cmyk = jpeg(COLORS.convert("CMYK"))
    assert cmyk.count(b"Adobe") == 1
    header = read_header(cmyk)
    assert header is not None and strip_metadata(cmyk, header) == cmyk
    assert JPEG[6:10] == b"JFIF"
    thumbnail = JPEG[:20] + segment(JFIF, b"JFXX\0\x10") + JPEG[20:]
    header = read_header(thumbnail)
    assert header is not None and strip_metadata(thumbnail, header) == JPEG


@pytest.mark.parametrize(
    ("payload", "orientation"),
    [
        *((exif(value, order), value) for value in range(1, 9) for order in "<>"),
        (exif(9), None),
        (exif(0), None),
        (exif(6, kind=4), None),
        (exif(6, entries=2), None),
        (exif(6, entries=0), 1),
        (exif(6)[:20], None),
        (exif(6)[:12], None),
        (b"Exif\0\0Exif\0\0" + exif(6)[6:], None),
        (b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>6</tiff:Orientation>", None),
        (b"http://ns.adobe.com/xap/1.0/\0<dc:title/>", 1),
    ],
)
def test_orientation_is_told_only_where_it_is_beyond_doubt(payload: bytes, orientation: int | None) -> None:
    header = read_header(JPEG[:2] + segment(EXIF, payload) + JPEG[2:])
    assert header is not None and header.orientation == orientation


def doubled_frame(raw: bytes) -> bytes:
    at = raw.index(b"\xff\xc0")
    return raw[:at] + raw[at : at + 19] + raw[at:]


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (JPEG, True),
        (jpeg(PICTURE), True),
        (jpeg(subsampling="4:4:4"), True),
        (jpeg(COLORS.convert("CMYK")), False),
        (jpeg(keep_rgb=True), False),
        (JPEG[:2] + JPEG[20:], True),  # without JFIF: component ids 1, 2, 3
        (JPEG[:2] + segment(ADOBE, b"Adobe\0\x64" + bytes(4) + b"\1") + JPEG[20:], True),
        (JPEG[:2] + segment(ADOBE, b"Adobe\0\x64" + bytes(4) + b"\0") + JPEG[20:], False),
        (JPEG[:2] + segment(ICC, b"MPF\0") + JPEG[2:], False),
        (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), False),  # 12 bits
        (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), False),  # arithmetic coding
        (JPEG.replace(b"\x01\x22\0\x02\x11\x01", b"\x01\x41\0\x02\x11\x01"), False),  # 4:1:1
        (JPEG + bytes(17), False),
        (JPEG + b"\r\n", True),
        (JPEG[:-2] + JPEG[SCAN : SCAN + 14] * MAX_SCANS + JPEG[-2:], False),
    ],
)
def test_only_what_every_decoder_understands_is_plain(raw: bytes, plain: bool) -> None:
    header = read_header(raw)
    assert header is not None and header.plain == plain


@pytest.mark.parametrize("raw", [JPEG, jpeg(progressive=True, exif=exif(6))])
def test_a_file_cut_anywhere_has_no_header(raw: bytes) -> None:
    assert read_header(raw) is not None
    assert [length for length in range(len(raw)) if read_header(raw[:length]) is not None] == []


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG", doubled_frame(JPEG)])
def test_what_is_no_jpeg_has_no_header(raw: bytes) -> None:
    assert read_header(raw) is None


@given(jpegs(), st.randoms(use_true_random=False))
def test_damage_never_raises(raw: bytes, chance: random.Random) -> None:
    damaged = bytearray(raw)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(min(len(damaged), 2000))] = chance.randrange(256)
    header = read_header(bytes(damaged))
    if header is not None:
        assert len(strip_metadata(bytes(damaged), header)) <= len(damaged)


def plain_pillow(raw: bytes, size: tuple[int, int], quality: int) -> np.ndarray[Any, Any]:
    small = Image.open(io.BytesIO(raw)).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return pixels(jpeg(small, quality=quality)).astype(int)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(31, 40), (30, 30), (45, 35), (89, 69)]), st.sampled_from([75, 95]))
def test_shrinking_gives_pillows_picture(seed: int, size: tuple[int, int], quality: int) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8))
    raw = jpeg(Image.blend(COLORS, noise.resize(COLORS.size, Image.Resampling.BICUBIC), 0.5), quality=92)
    small = shrink(raw, size, quality)
    assert small is not None and Image.open(io.BytesIO(small)).size == size
    assert np.abs(pixels(small) - plain_pillow(raw, size, quality)).mean() < 1


def test_photographs_shrink_to_pillows_picture(data: Path) -> None:
    differences = []
    for file in sorted((data / "imagenette").rglob("*.JPEG"))[::100]:
        raw = file.read_bytes()
        small = shrink(raw, (160, 160), 90)
        assert small is not None
        differences.append(np.abs(pixels(small) - plain_pillow(raw, (160, 160), 90)).mean())
    assert len(differences) > 10 and max(differences) < 0.6 and float(np.mean(differences)) < 0.3


def test_the_number_of_threads_changes_nothing() -> None:
    import torch

    raw, before = jpeg(COLORS.resize((900, 700)), quality=92), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(shrink(raw, (450, 350), 90))
    finally:
        torch.set_num_threads(before)
    assert results[0] is not None and len(set(results)) == 1


def test_damaged_data_are_left_to_pillow_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert shrink(JPEG[:-30], (9, 7), 90) is None
    assert shrink(b"\xff\xd8\xff\xd9", (9, 7), 90) is None
    ended_early = JPEG[: (SCAN + len(JPEG)) // 2] + b"\xff\xd9"
    assert shrink(ended_early, (9, 7), 90) is not None  # libjpeg's warning about it goes to standard error
    assert capfd.readouterr() == ("", "")


def test_torch_comes_only_when_asked_for_and_without_torchvisions_models() -> None:
    code = (
        "import sys, mpp.shards.jpeg as jpeg, mpp.shards.images\n"
        "assert 'torch' not in sys.modules\n"
        "assert jpeg.load_torch() and 'torchvision' not in sys.modules\n"
        "import torch\n"
        "assert torch.get_num_threads() == 1\n"
        "import torchvision.io\n"  # registering the same operators again does no harm
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert load_torch()
