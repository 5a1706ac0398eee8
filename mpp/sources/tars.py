"""The members of a tar, found by walking its headers: nothing is unpacked, followed or executed."""

import tarfile
from collections.abc import Iterator

from mpp.sources.members import Damaged, Member, Window

BLOCK = 512  # bytes
LONGEST_EXTENSION = 2**20  # bytes of a long name or of extended headers
LONGEST_PADDING = 2**20  # bytes of zeros after the end; tar fills up to a record, usually 10,240
CHUNK = 2**16
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
WITHOUT_DATA = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


def tar_members(window: Window) -> Iterator[Member]:
    """Yield every member that is no folder; links, devices and sparse files are ``refused``.

    Tars that are strung together are read to the end. Raises ``Damaged`` for a header that is none, and for a tar
    that ends within a member or without the zeros that close it.
    """
    position, extension, closed = window.begin, dict[str, str](), False
    while position < window.end:
        block = window.read(position, BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):
            position, closed = _after_zeros(window, position), True
            continue
        closed = False
        header = _header(block, position)
        begin = _data_begin(window, header, position, block)
        size = _number(extension.get("size"), header.size, position)
        stop = begin if header.type in WITHOUT_DATA else begin + size
        if stop > window.end:
            raise Damaged(f"cut off at byte {window.end} within the member at byte {position}")
        position = begin + -(-(stop - begin) // BLOCK) * BLOCK
        if header.type in EXTENSIONS:
            extension |= _extension(header.type, window, begin, size)
            continue
        if header.type != tarfile.DIRTYPE:
            name = extension.get("path", header.name)
            yield Member(name, (begin, size), size, _refusal(header, extension))
        extension = {}
    if not closed:
        raise Damaged(f"cut off at byte {window.end}, without the zeros that close a tar")


def _header(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged(f"no tar header at byte {position} ({error})") from None
    if header.size < 0:
        raise Damaged(f"a header with a size of {header.size} at byte {position}")
    return header


def _data_begin(window: Window, header: tarfile.TarInfo, position: int, block: bytes) -> int:
    """Return where a member's data begin: behind its header, and behind the further ones of an old sparse file."""
    more = header.type == tarfile.GNUTYPE_SPARSE and bool(block[482])
    while more:
        position += BLOCK
        more = window.read(position, BLOCK)[504:505].strip(b"\0") != b""
    return position + BLOCK


def _after_zeros(window: Window, position: int) -> int:
    """Return the first block at or after ``position`` that is not zero, or the end."""
    start = position
    while chunk := window.read(position, CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            return position + (len(chunk) - len(rest)) // BLOCK * BLOCK
        position += len(chunk)
        if position - start > LONGEST_PADDING:
            raise Damaged(f"nothing but zeros from byte {start} on")
    return position


def _extension(kind: bytes, window: Window, begin: int, size: int) -> dict[str, str]:
    """Return what a long name, or extended headers, say of the next member; global ones say nothing that counts."""
    if size > LONGEST_EXTENSION:
        raise Damaged(f"a header extension of {size} bytes at byte {begin}, at most {LONGEST_EXTENSION}")
    payload = window.read(begin, size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    return _records(payload, begin) if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) else {}


def _records(payload: bytes, begin: int) -> dict[str, str]:
    """Return the records of a PAX header: ``LENGTH KEY=VALUE``, each with a newline at its end."""
    records, position = dict[str, str](), 0
    while position < len(payload) and payload[position]:
        digits = payload[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = payload[position + len(digits) + 1 : position + length - 1]
        if length < len(digits) + 4 or position + length > len(payload) or b"=" not in record:
            raise Damaged(f"a header extension that cannot be read at byte {begin + position}")
        key, _, value = record.decode("utf-8", "surrogateescape").partition("=")
        records[key] = value
        position += length
    return records


def _number(text: str | None, otherwise: int, position: int) -> int:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Damaged(f"a header with a size of {text[:20]!r} at byte {position}")
    return int(text)


def _refusal(header: tarfile.TarInfo, extension: dict[str, str]) -> str:
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extension):
        return "a sparse file"
    if header.type in WITHOUT_DATA:
        return WITHOUT_DATA[header.type]
    return "" if header.type in tarfile.REGULAR_TYPES else f"of the unknown type {header.type!r}"
