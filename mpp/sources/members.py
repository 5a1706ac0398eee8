"""Files within a file: a stretch of an open file, a member that lies in it, and names that occur twice."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Damaged(Exception):
    """An archive that cannot be read on: what is wrong, and at which byte."""


class Window(NamedTuple):
    """The bytes from ``begin`` to ``end`` of the open file ``path``; all offsets are those in that file."""

    descriptor: int
    begin: int
    end: int
    path: str

    @property
    def stamp(self) -> bytes:
        """Return size and time of the file, by which a change is noticed."""
        status = os.fstat(self.descriptor)
        return b"%x.%x" % (status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end of the window, none outside of it."""
        if not self.begin <= offset < self.end:
            return b""
        return os.pread(self.descriptor, min(size, self.end - offset), offset)

    def read_exactly(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on; raise ``OSError`` where the file has become shorter."""
        data = self.read(offset, size)
        if len(data) < size:
            raise OSError(errno.EIO, f"{len(data)} of {size} bytes at byte {offset}: the archive has changed")
        return data


class Member(NamedTuple):
    """A file in an archive.

    ``place`` is (offset, size) in a tar, (offset of its header, method, packed size, size, crc32) in a zip; ``refused``
    says why it cannot be read, if so.
    """

    name: str
    place: tuple[int, ...]
    size: int
    refused: str = ""


@contextmanager
def open_window(path: Path) -> Iterator[Window]:
    """Open a whole file as a window; raise ``OSError`` where that is impossible."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting for its other end
    try:
        yield Window(descriptor, 0, os.fstat(descriptor).st_size, os.path.abspath(path))
    finally:
        os.close(descriptor)


class WindowStream(io.RawIOBase):
    """A window as a stream of bytes, for decompressors."""

    def __init__(self, window: Window) -> None:
        self._window, self._position = window, window.begin

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill ``target`` with the next bytes; return how many there were."""
        data = self._window.read(self._position, len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)


class DistinctNames:
    """Tells names apart that occur twice in an archive; it keeps hashes of 8 bytes."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._counts: dict[str, int] = {}

    def distinct(self, name: str) -> str:
        """Return ``name``, or ``name#2``, ``name#3`` ... where it has been given already."""
        if self._add(name):
            return name
        number = self._counts.get(name, 1)
        while True:
            number += 1
            if self._add(f"{name}#{number}"):
                self._counts[name] = number
                return f"{name}#{number}"

    def _add(self, name: str) -> bool:
        """Remember a name; return False where it was known."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        before = len(self._known)
        self._known.add(int.from_bytes(digest, "little"))
        return len(self._known) > before
