"""JPEG without a decoder: what the segments say, metadata cut out.

Terms of the standard (ITU-T T.81): a file is a row of segments, each a marker (0xFF and a code), a length and a
payload; the entropy-coded data of a scan follow its header and end where the next marker begins.

What a file lacks although it has an end marker: of the usual JPEG, which has one scan, a decoder tells any part (see
:func:`without_end`); of one in several scans (progressive), whole scans are missed, but not the end of the last one,
without which the picture is there and its lower part less fine.
"""

import re
import struct
from typing import NamedTuple

Size = tuple[int, int]
Span = tuple[int, int]
Segment = tuple[int, int, int]  # code, begin and end of the payload
Payloads = dict[str, list[bytes]]

SOI, EOI, SOS, DQT, DHT = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4
RESTARTS = range(0xD0, 0xD8)
BEFORE_DATA = {SOS, *RESTARTS}
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
PAYLOAD = {*range(0xC0, 0xFF)} - {*RESTARTS, SOI, EOI}  # markers that a length and a payload follow
SEQUENTIAL_FRAMES = {0xC0, 0xC1}  # baseline, extended
HUFFMAN_FRAMES = {*SEQUENTIAL_FRAMES, 0xC2}
PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}
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
AHEAD = b"\xff\0" * 8  # 64 one bits: as much as decoders read ahead; no picture goes on so, for no code is all ones
ORIENTATION = 0x0112  # tag of EXIF


class JpegHeader(NamedTuple):
    """What the segments of a complete JPEG say.

    ``size`` is (width, height); ``orientation`` is that of EXIF, None where it takes a full reader to tell;
    ``huffman`` says that it is coded as every decoder can read it, not arithmetic or lossless; ``plain`` that any
    decoder understands it alike: 8 bits, Huffman coded, gray or YCbCr, one image; ``whole`` that the scans are for
    all components and coefficients. ``data_end`` is where the data end if one scan holds all, None if several do.
    ``metadata`` are the spans of bytes that no decoder needs.
    """

    size: Size
    components: int
    progressive: bool
    orientation: int | None
    huffman: bool
    plain: bool
    whole: bool
    data_end: int | None
    metadata: tuple[Span, ...]


class _Frame(NamedTuple):
    """The payload of a start-of-frame segment."""

    code: int
    size: Size
    precision: int
    ids: tuple[int, ...]
    sampling: tuple[int, ...]


class _Scan(NamedTuple):
    """The payload of a start-of-scan segment; the lower half of ``bits`` is the last bit of coefficients it brings."""

    ids: tuple[int, ...]
    first: int
    last: int
    bits: int


def read_header(raw: bytes) -> JpegHeader | None:
    """Follow the segments from the first marker to the end marker; None where that is not possible."""
    if raw[:2] != b"\xff\xd8":
        return None
    try:
        segments = _segments(raw)
    except IndexError:
        return None
    codes = [segment[0] for segment in segments]
    frames = [segment for segment in segments if segment[0] in FRAMES]
    if codes[-1:] != [EOI] or len(frames) != 1 or SOS not in codes:
        return None
    frame = _frame(frames[0][0], raw[frames[0][1] : frames[0][2]])
    scans = [scan for code, begin, end in segments if code == SOS and (scan := _scan(raw[begin:end]))]
    if frame is None or len(scans) != codes.count(SOS):
        return None
    applications, metadata = _applications(raw, segments)
    first, end = codes.index(SOS), segments[-1][2]
    before = codes[:first]
    tables = DQT in before and DHT in before and frame.code in before
    if end < len(raw):
        metadata.append((end, len(raw)))
    next_code, next_begin, _ = segments[first + 1]
    sequential = frame.code in SEQUENTIAL_FRAMES and len(scans) == 1
    return JpegHeader(
        size=frame.size,
        components=len(frame.ids),
        progressive=frame.code in PROGRESSIVE_FRAMES,
        orientation=_orientation(applications) if applications else 1,
        huffman=frame.code in HUFFMAN_FRAMES,
        plain=tables and len(scans) <= MAX_SCANS and len(raw) - end <= PADDING and _is_plain(frame, applications),
        whole=_is_whole(frame, scans),
        data_end=next_begin - (2 if next_code == EOI else 4) if sequential else None,
        metadata=tuple(metadata),
    )


def count_scans(raw: bytes) -> int:
    """Return how many scans a decoder may find; what follows the end marker is none of its business."""
    try:
        codes = [segment[0] for segment in _segments(raw)]
    except IndexError:
        codes = []
    return codes.count(SOS) if codes[-1:] == [EOI] else raw.count(b"\xff\xda")


def without_end(raw: bytes, header: JpegHeader) -> bytes:
    """Return a JPEG that Pillow finds truncated if its data end too early, else reads as it does ``raw``.

    At the end marker decoders take what is missing for gray; without the marker they wait for more. So they do where
    the data are complete, but for bits to read ahead. A few bytes may be missing unnoticed: a pixel block or two.
    JPEGs of several scans are returned as they are, for no decoder begins without their end.
    """
    return raw if header.data_end is None else raw[: header.data_end] + AHEAD


def strip_metadata(raw: bytes, header: JpegHeader) -> bytes:
    """Return a JPEG without EXIF, ICC, XMP and whatever follows its end, pixels untouched.

    JFIF and Adobe segments, which declare the colour transform, and comments stay.
    """
    if not header.metadata:
        return raw
    bytes_of = memoryview(raw)  # whose slices are no copies
    begins = [0, *(end for _, end in header.metadata)]
    ends = [*(begin for begin, _ in header.metadata), len(raw)]
    return b"".join(bytes_of[begin:end] for begin, end in zip(begins, ends, strict=True))


def _segments(raw: bytes) -> list[Segment]:
    """Return (code, begin, end) of each segment up to the end marker; ``begin`` is that of the payload.

    Stops early at bytes that are no segment; raises ``IndexError`` where a segment is cut.
    """
    segments: list[Segment] = []
    position, scanned, length = 2, False, len(raw)
    while raw[position] == 0xFF and len(segments) < MAX_SEGMENTS:
        code, begin = raw[position + 1], position + 4
        if code in PAYLOAD:
            position += 2 + (raw[position + 2] << 8 | raw[position + 3])
            if not begin <= position <= length:
                break
            segments.append((code, begin, position))
        elif code == EOI:
            segments.append((code, position + 2, position + 2))
            break
        elif code == 0xFF:  # a fill byte
            position += 1
            continue
        elif code in RESTARTS and scanned:
            position += 2
        else:
            break
        if code in BEFORE_DATA:
            scanned = True
            found = NEXT_MARKER.search(raw, position)
            if found is None:
                break
            position = found.start()
    return segments


def _frame(code: int, payload: bytes) -> _Frame | None:
    """Read a start of frame; None where it is malformed."""
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        return None
    precision, height, width = struct.unpack_from(">BHH", payload)
    return _Frame(code, (width, height), precision, tuple(payload[6::3]), tuple(payload[7::3]))


def _scan(payload: bytes) -> _Scan | None:
    """Read a start of scan; None where it is malformed."""
    if len(payload) < 6 or len(payload) != 4 + 2 * payload[0]:
        return None
    return _Scan(tuple(payload[1:-3:2]), *payload[-3:])


def _is_whole(frame: _Frame, scans: list[_Scan]) -> bool:
    """Say whether there is a scan for every component and, if progressive, for the last bit of each coefficient."""
    if frame.code not in PROGRESSIVE_FRAMES:
        return scans[0].ids == frame.ids or {component for scan in scans for component in scan.ids} >= set(frame.ids)
    missing = dict.fromkeys(frame.ids, (1 << 64) - 1)  # a bit for each coefficient
    for scan in scans:
        for component in scan.ids:
            if scan.bits & 15 == 0 and component in missing:
                missing[component] &= ~((2 << scan.last) - (1 << scan.first))
    return not any(missing.values())


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
