"""Headers read without Pillow say what Pillow says, stripping keeps the pixels, and what is missing is found."""

import io
import random
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mpp.shards.jpeg import MAX_SCANS, count_scans, read_header, strip_metadata, without_end

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
    try:
        raw = jpeg(image, **options)
    except OSError:  # Pillow guesses how large its buffer must be, and seldom wrong
        reject()
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


@given(jpegs())
def test_without_its_end_a_complete_jpeg_gives_the_same_pixels(raw: bytes) -> None:
    header = read_header(raw)
    assert header is not None and header.whole
    assert header.progressive == (header.data_end is None)
    assert np.array_equal(pixels(raw), pixels(without_end(raw, header)))


@given(jpegs(), st.integers(100, 500))
def test_without_its_end_a_jpeg_that_lacks_data_is_truncated(raw: bytes, lost: int) -> None:
    header = read_header(raw)
    assert header is not None
    assume(header.data_end is not None and header.data_end - lost > raw.rindex(b"\xff\xda") + 20)
    cut = raw[: header.data_end - lost] + raw[header.data_end :]
    header = read_header(cut)
    assert header is not None
    with pytest.raises(OSError, match="truncated"):
        pixels(without_end(cut, header))


def test_the_data_end_where_the_next_segment_begins() -> None:
    header = read_header(JPEG[:-2] + segment(COMMENT, b"late") + JPEG[-2:])
    assert header is not None and header.data_end == len(JPEG) - 2


def test_a_progressive_jpeg_is_whole_with_its_last_scan_only() -> None:
    raw = jpeg(progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", raw)]
    headers = [read_header(raw[:begin] + b"\xff\xd9") for begin in scans[1:]]
    assert len(headers) == 9 and not any(header is None or header.whole for header in headers)
    last_only = read_header(raw[: scans[0]] + raw[scans[-1] :])
    assert last_only is not None and not last_only.whole


def test_one_scan_for_each_component_is_as_good_as_one_for_all() -> None:
    one = jpeg(subsampling="4:4:4")
    begin = one.index(b"\xff\xda")
    scans = [segment(0xDA, bytes([1, component, 0, 0, 63, 0])) + b"\x55" for component in (1, 2, 3)]
    header = read_header(one[:begin] + b"".join(scans) + b"\xff\xd9")
    assert header is not None and header.whole and header.data_end is None
    header = read_header(one[:begin] + b"".join(scans[:2]) + b"\xff\xd9")
    assert header is not None and not header.whole


def test_scans_are_counted_up_to_the_end_marker() -> None:
    scans = JPEG[SCAN:-2]
    thumbnail = JPEG[:2] + segment(EXIF, JPEG) + JPEG[2:]
    assert count_scans(JPEG) == count_scans(thumbnail) == count_scans(JPEG + scans * 5) == 1
    assert count_scans(JPEG[:-2] + scans * 4 + JPEG[-2:]) == 5
    assert count_scans(doubled_frame(JPEG)) == 1
    assert count_scans(JPEG[:-2] + b"\xff\x01" + scans * 4) == 5  # what is no segment ends nothing


@pytest.mark.parametrize(("frame", "huffman"), [(0xC0, True), (0xC1, True), (0xC3, False), (0xC9, False)])
def test_lossless_and_arithmetic_jpegs_are_told_apart(frame: int, huffman: bool) -> None:
    header = read_header(JPEG.replace(b"\xff\xc0", bytes([0xFF, frame])))
    assert header is not None and header.huffman == huffman and header.plain == huffman


def test_a_malformed_scan_gives_no_header() -> None:
    for payload in (b"", b"\1\1\0\0\x3f", JPEG[SCAN + 4 : SCAN + 14] + b"\0"):
        assert read_header(JPEG[:SCAN] + segment(0xDA, payload) + JPEG[SCAN + 14 :]) is None
