"""The members of a zip, found by walking its central directory, and their bytes."""

import struct
import zlib
from collections.abc import Iterator

from mpp.sources.files import check_bytes
from mpp.sources.members import Damaged, Member, Window

STORED, DEFLATED = 0, 8
CHUNK = 2**18
ENTRY = struct.Struct("<4s4B4H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCATOR, END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
LOCAL = struct.Struct("<4s5H3L2H")
LONGEST_COMMENT = 2**16
FULL = 0xFFFFFFFF  # in a field of 32 bits: the number stands in the extra field
LINK, KIND_OF_FILE = 0o120000, 0o170000


def zip_members(window: Window) -> Iterator[Member]:
    """Yield every member that is no folder; encrypted ones, links and rare compressions are ``refused``.

    Raises ``Damaged`` where there is no central directory, as in a zip that was cut off, or it cannot be read.
    """
    position, end, shift = _directory(window)
    while position < end:
        raw = window.read(position, ENTRY.size)
        if len(raw) < ENTRY.size or raw[:4] != b"PK\1\2":
            raise Damaged(f"no entry of a zip's directory at byte {position}")
        entry = ENTRY.unpack(raw)
        flags, method, crc, packed, size = entry[5], entry[6], entry[9], entry[10], entry[11]
        lengths, offset = entry[12:15], entry[18]
        texts = window.read(position + ENTRY.size, sum(lengths[:2]))
        name = _decoded(texts[: lengths[0]], flags)
        size, packed, offset = _wide((size, packed, offset), texts[lengths[0] :])
        position += ENTRY.size + sum(lengths)
        if not name.endswith("/"):
            link = entry[2] == 3 and (entry[17] >> 16) & KIND_OF_FILE == LINK
            yield Member(name, (offset + shift, method, packed, size, crc), size, _refusal(flags, method, link))


def read_zip_member(window: Window, header: int, method: int, packed: int, size: int, crc: int) -> bytes:
    """Return a member's bytes.

    Raises ``OSError`` where they cannot be unpacked, are not as many or not those that the zip promises, and for
    more than ``MAX_FILE_BYTES``.
    """
    check_bytes(size, "")
    return b"".join(zip_content(window, header, method, packed, size, crc))


def zip_content(window: Window, header: int, method: int, packed: int, size: int, crc: int) -> Iterator[bytes]:
    """Yield a member's bytes piece by piece.

    Raises ``OSError`` where they cannot be unpacked, before there are more than the zip promises, and at their end
    where they are fewer or others.
    """
    count, checksum = 0, 0
    for chunk in zip_chunks(window, header, method, packed):
        count += len(chunk)
        checksum = zlib.crc32(chunk, checksum)
        if count > size:
            raise OSError(f"{count} or more bytes, the zip promises {size}")
        yield chunk
    if count != size:
        raise OSError(f"{count} bytes, the zip promises {size}")
    if checksum != crc:
        raise OSError("its bytes do not have the checksum in the zip")


def zip_chunks(window: Window, header: int, method: int, packed: int) -> Iterator[bytes]:
    """Yield a member's bytes piece by piece, unchecked; raise ``OSError`` where they cannot be unpacked."""
    position = data_begin(window, header)
    end = position + packed
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if method == DEFLATED else None
    while position < end and not (inflate and inflate.eof):
        raw = window.read_exactly(position, min(CHUNK, end - position))
        position += len(raw)
        if inflate is None:
            yield raw
        else:
            yield from _inflated(inflate, raw)


def data_begin(window: Window, header: int) -> int:
    """Return where a member's bytes begin, behind its own header; raise ``OSError`` where there is none."""
    raw = window.read_exactly(header, LOCAL.size)
    if raw[:4] != b"PK\3\4":
        raise OSError(f"no member of a zip at byte {header}")
    fields = LOCAL.unpack(raw)
    return header + LOCAL.size + int(fields[9]) + int(fields[10])


def _inflated(inflate: "zlib._Decompress", raw: bytes) -> Iterator[bytes]:
    try:
        while not inflate.eof and (chunk := inflate.decompress(raw, CHUNK)):
            yield chunk
            raw = inflate.unconsumed_tail
    except zlib.error as error:
        raise OSError(f"cannot be unpacked ({error})") from None


def _directory(window: Window) -> tuple[int, int, int]:
    """Return where the central directory begins and ends, and what to add to the offsets in it."""
    tail_begin = max(window.begin, window.end - END.size - LONGEST_COMMENT)
    tail = window.read(tail_begin, window.end - tail_begin)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < END.size:
        raise Damaged(f"no directory at its end, at byte {window.end}: cut off, or no zip")
    end = tail_begin + found
    size, offset = END.unpack_from(tail, found)[5:7]
    locator = window.read(end - LOCATOR.size, LOCATOR.size)
    if locator[:4] == b"PK\6\7":
        end -= LOCATOR.size + END64.size
        raw = window.read(end, END64.size)
        if raw[:4] != b"PK\6\6":
            raise Damaged(f"no directory of a large zip at byte {end}")
        size, offset = END64.unpack(raw)[8:10]
    begin = end - size
    if begin < window.begin:
        raise Damaged(f"a directory of {size} bytes at byte {end}")
    return begin, end, begin - offset


def _wide(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Return (size, packed size, offset), those that are too large for 32 bits from the extra field."""
    wide = list(numbers)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            wide = [next(values, number) if number == FULL else number for number in wide]
        extra = extra[4 + length :]
    return wide[0], wide[1], wide[2]


def _decoded(name: bytes, flags: int) -> str:
    """Return a name as text, with slashes; many programs write UTF-8 without the flag that says so."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = name.decode("utf-8", "surrogateescape") if flags & 0x800 else name.decode("cp437")
    return text.replace("\\", "/")


def _refusal(flags: int, method: int, link: bool) -> str:
    if flags & 0x41:
        return "encrypted"
    if method not in (STORED, DEFLATED):
        return f"compressed by method {method}, which is not read"
    return "a symbolic link" if link else ""
