"""What a web server must answer when a file, or a range of its bytes, is asked for; all else is an error that says so.

The session is the one that fsspec keeps open from one request to the next.
"""

import errno
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

QUOTED = 64  # bytes of an answer that an error shows
READ = 2**16
WRITTEN = 2**20  # bytes that are written to a file at a time
PAGES = (b"<!doctype html", b"<html")  # how a login page begins
BUSY = (408, 429)


class Answer(OSError):
    """What a server sent instead of what was asked for, and whether it may be asked again.

    ``errno`` is ESTALE where the file has not the size that it should have.
    """

    def __init__(self, message: str, *, again: bool, number: int = errno.EIO) -> None:
        super().__init__(number, message)
        self.again = again


class Range(NamedTuple):
    """The bytes ``offset .. offset + size`` of a file that has ``total`` bytes, None where that is not known."""

    offset: int
    size: int
    total: int | None

    @property
    def end(self) -> int:
        return self.offset + self.size


async def whole_answer(store: Any, url: str, *, most: int, seconds: float) -> bytes:
    """Return a file, within ``seconds``, or the first bytes of one that has more than ``most``."""
    import aiohttp

    session = await store.set_session()
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=seconds)) as answer:
        data = await _read(answer, most + 1 if answer.status == 200 else QUOTED)
        if answer.status != 200:
            raise _refused(answer, data)
    return data


async def whole_file(store: Any, url: str, file: Path, seconds: float) -> None:
    """Write an answer into a file as it comes; a server may take its time, but not be silent for ``seconds``."""
    import aiohttp

    session = await store.set_session()
    timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_read=seconds)
    async with session.get(url, timeout=timeout, headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status != 200:
            raise _refused(answer, await _read(answer, QUOTED))
        with open(file, "wb") as target:
            while data := await _read(answer, WRITTEN, target.tell()):
                target.write(data)


async def range_answer(store: Any, url: str, wanted: Range, *, piece: int, seconds: float) -> AsyncGenerator[bytes]:
    """Yield a range in pieces of at most ``piece`` bytes, each as soon as it came; nothing came for ``seconds``: error.

    A server may send the whole file instead, then its beginning is passed over.
    """
    import aiohttp

    session = await store.set_session()
    headers = {"Range": f"bytes={wanted.offset}-{wanted.end - 1}", "Accept-Encoding": "identity"}
    timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_read=seconds)
    async with session.get(url, headers=headers, timeout=timeout) as answer:
        data = await _read(answer, piece if answer.status in (200, 206) else QUOTED)
        _check_range(answer, wanted, data)
        whole = answer.status == 200
        at, begin, end = 0, wanted.offset if whole else 0, wanted.end if whole else wanted.size
        while data and at < end:
            if useful := data[max(0, begin - at) : end - at]:
                yield useful
            at += len(data)
            data = await _read(answer, piece)
        at += len(data)
        if at < end or (at > end and not whole):
            raise Answer(f"a body of {at} bytes where {end} were due", again=True)


async def _read(answer: Any, most: int, before: int = 0) -> bytes:
    """Return the next ``most`` bytes after those that came ``before``, fewer at the end."""
    import aiohttp

    data = bytearray()
    try:
        while len(data) < most and (chunk := await answer.content.read(min(READ, most - len(data)))):
            data += chunk
    except aiohttp.ClientPayloadError:
        what = f"cut off after {before} bytes more" if before else "cut off"
        raise Answer(_seen(what, answer, data), again=True) from None
    return bytes(data)


def _check_range(answer: Any, wanted: Range, head: bytes) -> None:
    """Raise ``Answer`` unless status and headers promise the range, or the whole file it is in."""
    if answer.status == 200:
        if answer.content_type == "text/html" or head[:QUOTED].lstrip().lower().startswith(PAGES):
            raise Answer(_seen("a web page instead of the file, status 200", answer, head), again=False)
        _check_total(answer, answer.content_length, wanted, head)
        return
    promised = answer.headers.get("Content-Range", "")
    if answer.status == 416:  # it begins behind the end of the file
        total = re.fullmatch(r"bytes \*/(\d+)", promised)
        _check_total(answer, int(total[1]) if total else None, wanted, head)
    if answer.status != 206:
        raise _refused(answer, head)
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", promised)
    if found is not None and found[3] != "*":
        _check_total(answer, int(found[3]), wanted, head)
    if found is None or (int(found[1]), int(found[2]) + 1) != (wanted.offset, wanted.end):
        asked = f"bytes {wanted.offset}-{wanted.end - 1}"
        raise Answer(_seen(f"status 206 for {promised[:QUOTED]!r} instead of {asked}", answer, head), again=True)
    if answer.content_length not in (None, wanted.size):
        raise Answer(_seen(f"a body of another length than the {wanted.size} asked for", answer, head), again=True)


def _check_total(answer: Any, total: int | None, wanted: Range, head: bytes) -> None:
    if total is not None and (total < wanted.end or wanted.total not in (None, total)):
        due = f"at least {wanted.end}" if wanted.total is None else str(wanted.total)
        raise Answer(_seen(f"a file of {total} bytes instead of {due}", answer, head), again=True, number=errno.ESTALE)


def _refused(answer: Any, head: bytes) -> Answer:
    again = answer.status >= 500 or answer.status in BUSY
    return Answer(_seen(f"status {answer.status}", answer, head), again=again)


def _seen(what: str, answer: Any, data: bytes | bytearray) -> str:
    promised = answer.headers.get("Content-Length", "?")
    return f"{what}, {len(data)} of {promised} bytes came, which start with {bytes(data[:QUOTED])!r}"
