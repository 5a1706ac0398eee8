"""JPEG without Pillow: what the segments say, metadata cut out, and a fast way to a smaller JPEG.

Terms of the standard (ITU-T T.81): a file is a row of segments, each a marker (0xFF and a code), a length and a
payload; the entropy-coded data of a scan follow its header and end where the next marker begins.
"""

import functools
import importlib.util
import itertools
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Size = tuple[int, int]
Span = tuple[int, int]
Segment = tuple[int, int, int]  # code, begin and end of the payload
Payloads = dict[str, list[bytes]]

SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
RESTARTS = range(0xD0, 0xD8)
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
PROGRESSIVE = 0xC2
APP0, APP15 = 0xE0, 0xEF
APPLICATIONS = {
    (0xE0, b"JFIF"): "jfif",
    (0xE1, b"Exif"): "exif",
    (0xE1, b"http"): "xmp",
    (0xE2, b"MPF\0"): "mpf",  # several pictures in one file
    (0xEE, b"Adob"): "adobe",
}
# What ends the data of a scan: anything but a stuffed zero and restarts.
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
YCBCR_SAMPLING = {(across << 4 | down, 0x11, 0x11) for across in (1, 2) for down in (1, 2)}
MAX_SCANS = 100  # each may cost a pass over all pixels; encoders write about ten
MAX_SEGMENTS = 10_000
PADDING = 16  # bytes after the end marker that still count as a plain file
ORIENTATION = 0x0112  # tag of EXIF
RGB = 3  # of torchvision's ImageReadMode


class JpegHeader(NamedTuple):
    """What the segments of a complete JPEG say.

    ``size`` is (width, height); ``orientation`` is that of EXIF, None where it takes a full reader to tell;
    ``plain`` says that any decoder understands the file alike: 8 bits, Huffman coded, gray or YCbCr, one image;
    ``metadata`` are the spans of bytes that no decoder needs.
    """

    size: Size
    components: int
    precision: int
    progressive: bool
    orientation: int | None
    plain: bool
    metadata: tuple[Span, ...]


class _Frame(NamedTuple):
    """The payload of a start-of-frame segment."""

    code: int
    size: Size
    precision: int
    ids: tuple[int, ...]
    sampling: tuple[int, ...]


def read_header(raw: bytes) -> JpegHeader | None:
    """Follow the segments from the first marker to the end marker; None where that is not possible."""
    if raw[:2] != b"\xff\xd8":
        return None
    try:
        segments = list(itertools.islice(_segments(raw), MAX_SEGMENTS))
    except IndexError:
        return None
    codes = [code for code, _, _ in segments]
    frames = [code for code in codes if code in FRAMES]
    if codes[-1:] != [EOI] or len(frames) != 1 or SOS not in codes:
        return None
    frame = _frame(frames[0], raw[slice(*segments[codes.index(frames[0])][1:])])
    if frame is None:
        return None
    applications, metadata = _applications(raw, segments)
    scan, end = codes.index(SOS), segments[-1][2]
    tables = DQT in codes[:scan] and DHT in codes[:scan] and frames[0] in codes[:scan]
    plain = tables and codes.count(SOS) <= MAX_SCANS and len(raw) - end <= PADDING and _is_plain(frame, applications)
    if end < len(raw):
        metadata.append((end, len(raw)))
    orientation = _orientation(applications)
    progressive = frame.code == PROGRESSIVE
    return JpegHeader(frame.size, len(frame.ids), frame.precision, progressive, orientation, plain, tuple(metadata))


def strip_metadata(raw: bytes, header: JpegHeader) -> bytes:
    """Return a JPEG without EXIF, ICC, XMP and whatever follows its end, pixels untouched.

    JFIF and Adobe segments, which declare the colour transform, and comments stay.
    """
    if not header.metadata:
        return raw
    begins = [0, *(end for _, end in header.metadata)]
    ends = [*(begin for begin, _ in header.metadata), len(raw)]
    return b"".join(raw[begin:end] for begin, end in zip(begins, ends, strict=True))


def shrink(raw: bytes, size: Size, quality: int) -> bytes | None:
    """Return a plain JPEG resized to ``size``, (width, height), with an antialiasing Lanczos filter.

    The metadata are gone. None where torch has no such filter, or its decoder does not take the file.
    """
    torch = _torch()
    if torch is None:
        return None
    try:
        with silent():  # libjpeg tells the terminal about damaged data
            pixels_CHW = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), RGB, False)
        # the same pixels with strides that torch knows as channels-last: saves two copies
        pixels_NCHW = pixels_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        small_NCHW = torch.nn.functional.interpolate(pixels_NCHW, size[::-1], mode="lanczos", antialias=True)
        encoded: bytes = torch.ops.image.encode_jpeg(small_NCHW[0], quality).numpy().tobytes()
    except (RuntimeError, MemoryError, OSError):
        return None
    return encoded


def load_torch() -> bool:
    """Load what :func:`shrink` needs, once a process; say whether it is there. Takes seconds and 250 to 500 MB."""
    return _torch() is not None


def _segments(raw: bytes) -> Iterator[Segment]:
    """Yield (code, begin, end) of each segment up to the end marker; ``begin`` is that of the payload.

    Stops early at bytes that are no segment; raises ``IndexError`` where a segment is cut.
    """
    position, scanned = 2, False
    while raw[position] == 0xFF:
        code = raw[position + 1]
        if code == 0xFF:  # a fill byte
            position += 1
            continue
        if code == EOI:
            yield code, position + 2, position + 2
            return
        if code in RESTARTS and scanned:
            end = position + 2
        else:
            end = position + 2 + (raw[position + 2] << 8 | raw[position + 3])
            if code < 0xC0 or code in RESTARTS or code == SOI or end < position + 4 or end > len(raw):
                return
            yield code, position + 4, end
        scanned = scanned or code == SOS
        if code == SOS or code in RESTARTS:
            found = NEXT_MARKER.search(raw, end)
            if found is None:
                return
            end = found.start()
        position = end


def _frame(code: int, payload: bytes) -> _Frame | None:
    """Read a start of frame; None where it is malformed."""
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        return None
    precision, height, width = struct.unpack_from(">BHH", payload)
    return _Frame(code, (width, height), precision, tuple(payload[6::3]), tuple(payload[7::3]))


def _applications(raw: bytes, segments: list[Segment]) -> tuple[Payloads, list[Span]]:
    """Return the payloads of the APPn segments that matter, by name, and the spans of those no decoder needs."""
    payloads: Payloads = {}
    metadata = []
    for code, begin, end in segments:
        if APP0 <= code <= APP15:
            name = APPLICATIONS.get((code, raw[begin : begin + 4]))
            if name:
                payloads.setdefault(name, []).append(raw[begin:end])
            if name not in ("jfif", "adobe"):
                metadata.append((begin - 4, end))
    return payloads, metadata


def _is_plain(frame: _Frame, applications: Payloads) -> bool:
    if frame.code not in HUFFMAN_FRAMES or frame.precision != 8 or 0 in frame.size or "mpf" in applications:
        return False
    if len(frame.ids) == 1:
        return "adobe" not in applications
    if "adobe" in applications:
        ycbcr = all(payload[11:12] == b"\1" for payload in applications["adobe"])
    else:
        ycbcr = "jfif" in applications or frame.ids == (1, 2, 3)
    return ycbcr and frame.sampling in YCBCR_SAMPLING and len(set(frame.ids)) == 3


def _orientation(applications: Payloads) -> int | None:
    """Return the orientation that EXIF tells, 1 where nothing does, None where it cannot be told plainly."""
    if any(b"tiff:Orientation" in packet for packet in applications.get("xmp", ())):
        return None
    exif = applications.get("exif")
    if exif is None:
        return 1
    tiff = exif[0][6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if len(exif) != 1 or order is None or len(tiff) < 10:
        return None
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    table = tiff[first + 2 : first + 2 + 12 * count]
    if len(table) < 12 * count:
        return None
    found = [entry[1:] for entry in struct.iter_unpack(f"{order}HHIHxx", table) if entry[0] == ORIENTATION]
    if not found:
        return 1
    kind, length, value = found[0]
    return int(value) if len(found) == 1 and (kind, length) == (3, 1) and 1 <= value <= 8 else None


@functools.cache
def _torch() -> Any:
    """Import torch with torchvision's JPEG codec; None where either is missing or lacks what is needed.

    The codec is one library file of torchvision. Importing the whole package would take another 160 MB and a
    second, for its models.
    """
    first = "torch" not in sys.modules
    try:
        import torch

        found = importlib.util.find_spec("torchvision")
        folder = Path(found.origin).parent if found and found.origin else Path()
        for library in sorted(folder.glob("image*.so")):
            torch.ops.load_library(library)
        usable = hasattr(torch.ops.image, "decode_jpeg") and hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
    except (ImportError, OSError):
        return None
    if first:
        torch.set_num_threads(1)  # the processes of a pool have a core each
    return torch if usable else None


@contextmanager
def silent() -> Iterator[None]:
    """Send nowhere what the C code of decoders writes to standard error."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        os.dup2(_nowhere(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@functools.cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)
