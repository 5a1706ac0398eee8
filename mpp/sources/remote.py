"""What URLs hold, read through fsspec: files and ranges of them, with bounds on size, time and the number of tries.

Not to be used before a fork: fsspec runs an event loop in a thread.
"""

import asyncio
import errno
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from mpp.errors import ConfigError
from mpp.redaction import redact_url
from mpp.sources.answers import QUOTED, Answer, Range, range_answer, whole_answer, whole_file
from mpp.sources.files import MAX_FILE_BYTES, check_bytes, printable, read_file

PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "https": "aiohttp",
    "http": "aiohttp",
    "hf": "huggingface_hub",
    "file": "fsspec",
}
TRIES = 4
FIRST_PAUSE = 0.5  # seconds before the second try; doubled before each further one
SECONDS = 60.0  # for one request
STALL_SECONDS = 20.0  # without a byte of a range: all tries together end before the stream's own patience does
PIECE = 2**23  # bytes of a range that are asked for, or handed on, at a time
Result = TypeVar("Result")


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL in lower case, None for a local path; ``pipe:`` is one even without slashes."""
    found = re.match(r"(pipe):|([^/]*)://", text, re.IGNORECASE)
    return None if found is None else (found[1] or found[2]).lower()


def check_scheme(scheme: str) -> None:
    """Raise ``ConfigError`` for a scheme that is not read, or whose package is missing."""
    import fsspec

    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise ConfigError(f"{printable(scheme)}: is not read; known are {known}", fix="download the files")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(f"{scheme}:// cannot be read: {error}", fix=f"pip install {PACKAGES[scheme]}") from None


def check_public(url: str) -> None:
    """Raise ``ConfigError`` for a URL with a user, a password or a query: indexes and settings are written to files."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        what = "what follows ? may be a signature" if parts.query else "a user or password in a URL"
        raise ConfigError(
            f"{redact(url)}: {what}, and URLs are written into indexes and settings",
            fix="give it without; credentials come from the environment, or from fsspec's configuration",
        )


def redact(url: str) -> str:
    """Return a URL as it may be shown: in one line, without user and password, and without the values in its query."""
    return printable(redact_url(url))


def nothing() -> None:
    """Do nothing where another try is made."""


def read_url(url: str) -> bytes:
    """Return what a URL holds.

    Tries ``TRIES`` times where the server is busy, fails, or is cut off. Raises ``OSError`` with the redacted URL,
    the status and the first bytes that came; EFBIG for more than ``MAX_FILE_BYTES``.
    """
    return _patiently(url, lambda: _read(url), nothing)


def read_range(
    url: str, offset: int, size: int, *, total: int | None = None, on_retry: Callable[[], None] = nothing
) -> bytes:
    """Return exactly ``size`` bytes of what a URL holds, from ``offset`` on; ``total`` is the size it should have.

    Tries as ``read_url`` does, ``on_retry`` is called before every further try. Raises ``OSError`` with the redacted
    URL, the status and the first bytes that came; ESTALE for a file of another size.
    """
    return _patiently(url, lambda: b"".join(_range(url, Range(offset, size, total))), on_retry)


def read_pieces(url: str, size: int, *, on_retry: Callable[[], None] = nothing) -> Generator[bytes]:
    """Yield all ``size`` bytes of what a URL holds, in order; where it is cut off, only a piece is asked for again.

    Tries every piece as ``read_range`` does, and raises the same.
    """
    done, pieces = 0, _range(url, Range(0, size, size))

    def following() -> bytes:
        nonlocal pieces
        try:
            return next(pieces)
        except Exception:
            pieces = _range(url, Range(done, size - done, size))
            raise

    try:
        while done < size:
            piece = _patiently(url, following, on_retry)
            done += len(piece)
            yield piece
    finally:
        pieces.close()


def download(url: str, file: Path) -> None:
    """Write what a URL holds, of whatever size, into ``file``; tries again and raises as :func:`read_url` does."""
    _patiently(url, lambda: _download(url, file), nothing)


def _patiently(url: str, read: Callable[[], Result], on_retry: Callable[[], None]) -> Result:
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except Exception as error:  # every file system has kinds of its own
            if attempt == TRIES or not _may_pass(error):
                raise _for_people(url, error, attempt) from None
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        on_retry()
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    """Say whether another try may end otherwise."""
    if isinstance(error, Answer):
        return error.again
    final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ImportError | ValueError)
    return not final and getattr(error, "errno", None) != errno.EFBIG


def _for_people(url: str, error: Exception, tries: int) -> OSError:
    """Return the error to show; libraries put whole URLs into their messages, so of theirs only the kind is kept."""
    reason = error.strerror if isinstance(error, Answer) else type(error).__name__
    number = getattr(error, "errno", None) or errno.EIO
    return OSError(number, f"{redact(url)}: {reason}" + (f" ({tries} tries)" if tries > 1 else ""))


def _read(url: str) -> bytes:
    import fsspec
    import fsspec.asyn

    scheme = scheme_of(url)
    if scheme == "file":
        return read_file(_local(url))
    if scheme in ("http", "https"):
        store = fsspec.filesystem(scheme)
        data: bytes = fsspec.asyn.sync(
            store.loop, whole_answer, store, url, most=MAX_FILE_BYTES, seconds=SECONDS, timeout=2 * SECONDS
        )
    else:
        data = _stored(url, 0, MAX_FILE_BYTES + 1)
    check_bytes(len(data), "")
    return data


def _download(url: str, file: Path) -> None:
    import fsspec
    import fsspec.asyn

    scheme = scheme_of(url)
    store = fsspec.filesystem(scheme)
    if scheme in ("http", "https"):
        fsspec.asyn.sync(store.loop, whole_file, store, url, file, SECONDS)
    else:
        store.get_file(store._strip_protocol(url), str(file))


def _range(url: str, wanted: Range) -> Generator[bytes]:
    """Yield the bytes of a range in pieces of ``PIECE``, without a second try."""
    if scheme_of(url) in ("http", "https"):
        yield from _answered(url, wanted)
        return
    for offset in range(wanted.offset, wanted.end, PIECE):
        size = min(PIECE, wanted.end - offset)
        beyond = offset + size == wanted.total  # a byte more than asked for tells that the file is too long
        data = _stored(url, offset, size + beyond)
        if len(data) != size:
            number = errno.EIO if wanted.total is None else errno.ESTALE
            what = f"{len(data)} bytes came of the {size} from {offset} on, which start with {data[:QUOTED]!r}"
            raise Answer(what, again=True, number=number)
        yield data


def _answered(url: str, wanted: Range) -> Generator[bytes]:
    import fsspec
    import fsspec.asyn

    if not wanted.size:
        return
    store = fsspec.filesystem(scheme_of(url))
    pieces = range_answer(store, url, wanted, piece=PIECE, seconds=STALL_SECONDS)
    try:
        while piece := fsspec.asyn.sync(store.loop, _next, pieces):
            yield piece
    finally:  # not waited for: nobody would answer when Python ends
        asyncio.run_coroutine_threadsafe(_close(pieces), store.loop)


async def _next(pieces: AsyncGenerator[bytes]) -> bytes:
    return await anext(pieces, b"")


async def _close(pieces: AsyncGenerator[bytes]) -> None:
    await pieces.aclose()


def _stored(url: str, offset: int, size: int) -> bytes:
    """Return ``size`` bytes from ``offset`` on out of a store that is no web server, fewer at its end."""
    import fsspec
    import fsspec.asyn

    scheme = scheme_of(url)
    store = fsspec.filesystem(scheme)
    if store.async_impl:
        path, end = store._strip_protocol(url), offset + size
        data: bytes = fsspec.asyn.sync(store.loop, store._cat_file, path, offset, end, timeout=2 * STALL_SECONDS)
        return data
    opened: BinaryIO = _local(url).open("rb") if scheme == "file" else store.open(url, "rb", cache_type="none")
    with opened as file:
        file.seek(offset)
        return file.read(size)


def _local(url: str) -> Path:
    """Return the path that a ``file://`` URL names."""
    return Path(unquote(urlsplit(url).path))
