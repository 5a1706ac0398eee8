"""Images behind URLs, read through fsspec: with a bound on their size, on the time, and on how often it is tried.

Not to be used before a fork: fsspec runs an event loop in a thread.
"""

import errno
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mpp.errors import ConfigError
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
QUOTED = 64  # bytes of an answer that an error shows


class _Answer(OSError):
    """What a server sent instead of an image, and whether it may be asked again."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(errno.EIO, message)
        self.again = again


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


def redact(url: str) -> str:
    """Return a URL as it may be shown: without user and password, and without the values in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme_of(url)}://..."
    query = "&".join(f"{key}=..." if equals else "..." for key, equals, _ in _pairs(parts.query))
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "")))


def _pairs(query: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in query.split("&")] if query else []


def read_url(url: str) -> bytes:
    """Return what a URL holds.

    Tries ``TRIES`` times where the server is busy, fails, or is cut off. Raises ``OSError`` with the redacted URL,
    the status and the first bytes that came; EFBIG for more than ``MAX_FILE_BYTES``.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return _read(url)
        except Exception as error:  # every file system has kinds of its own
            if attempt == TRIES or not _may_pass(error):
                raise _for_people(url, error, attempt) from None
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    """Say whether another try may end otherwise."""
    if isinstance(error, _Answer):
        return error.again
    final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ImportError | ValueError)
    return not final and getattr(error, "errno", None) != errno.EFBIG


def _for_people(url: str, error: Exception, tries: int) -> OSError:
    """Return the error to show; libraries put whole URLs into their messages, so of theirs only the kind is kept."""
    reason = error.strerror if isinstance(error, _Answer) else type(error).__name__
    number = getattr(error, "errno", None) or errno.EIO
    return OSError(number, f"{redact(url)}: {reason}" + (f" ({tries} tries)" if tries > 1 else ""))


def _read(url: str) -> bytes:
    import fsspec
    import fsspec.asyn

    scheme = scheme_of(url)
    if scheme == "file":
        return read_file(Path(unquote(urlsplit(url).path)))
    store = fsspec.filesystem(scheme)
    data: bytes
    if scheme in ("http", "https"):
        data = fsspec.asyn.sync(store.loop, _get, store, url, timeout=2 * SECONDS)
    elif store.async_impl:
        path, end = store._strip_protocol(url), MAX_FILE_BYTES + 1
        data = fsspec.asyn.sync(store.loop, store._cat_file, path, end=end, timeout=2 * SECONDS)
    else:
        with store.open(url, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    check_bytes(len(data), "")
    return data


async def _get(store: Any, url: str) -> bytes:
    """Read over the session that fsspec keeps open from one image to the next."""
    import aiohttp

    session = await store.set_session()
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=SECONDS)) as answer:
        data = bytearray()
        most = MAX_FILE_BYTES if answer.status == 200 else QUOTED
        try:
            async for chunk in answer.content.iter_chunked(2**16):
                data += chunk
                if len(data) > most:
                    break
        except aiohttp.ClientPayloadError:
            raise _Answer(_seen("cut off", answer, data), again=True) from None
        if answer.status != 200:
            again = answer.status >= 500 or answer.status in (408, 429)
            raise _Answer(_seen(f"status {answer.status}", answer, data), again=again)
    return bytes(data)


def _seen(what: str, answer: Any, data: bytearray) -> str:
    promised = answer.headers.get("Content-Length", "?")
    return f"{what}, {len(data)} of {promised} bytes came, which start with {bytes(data[:QUOTED])!r}"
