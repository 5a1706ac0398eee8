"""Files in an archive, and in archives within it: found and read where they lie.

Only what is compressed as a whole is unpacked, once, into one file in the folder ``spool``. No name in an archive is
ever used as a path.
"""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mpp.disk import disk_errors
from mpp.sources.files import HEAD, check_bytes, printable
from mpp.sources.members import Damaged, DistinctNames, Member, Window, WindowStream, open_window
from mpp.sources.tars import tar_members
from mpp.sources.zips import STORED, data_begin, read_zip_member, zip_chunks, zip_content, zip_members

DECOMPRESSORS: dict[str, Any] = {
    ".tar.gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".tgz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".tar.bz2": bz2.BZ2File,
    ".tbz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
    ".txz": lzma.LZMAFile,
}
ARCHIVES = (".tar", ".zip", *DECOMPRESSORS)
NOT_READ = (".7z", ".rar", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma")  # archives, too
DEEPEST = 4  # archives one within the other
CHUNK = 2**20
OUTER, SPOOLED, REFUSED = b"r", b"s", b"!"  # first byte of a place: it lies in an archive as it was found, in the spool


class Item(NamedTuple):
    """A file in an archive: its path there, and the member of which archive's window it is."""

    path: str
    archive: bytes
    window: Window
    member: Member

    @property
    def place(self) -> bytes:
        """Return what :func:`read_place` needs."""
        if self.member.refused:
            return REFUSED + self.member.refused.encode()
        return b"\0".join([self.archive, *(b"%d" % number for number in self.member.place)])

    @property
    def content(self) -> bytes:
        """Return the content; raise ``OSError`` where it cannot be read."""
        return _read(self.window, self.member.place)

    @property
    def head(self) -> bytes:
        """Return the first bytes, none where they cannot be read."""
        try:
            if len(self.member.place) == 2:
                return self.window.read(self.member.place[0], min(HEAD, self.member.size))
            return next(zip_chunks(self.window, *self.member.place[:3]), b"")[:HEAD]
        except OSError:
            return b""


def is_archive(name: str) -> bool:
    """Say whether a file is an archive by its name."""
    return name.lower().endswith(ARCHIVES)


def without_suffix(name: str) -> str:
    """Return the name of an archive without its extension."""
    return next((name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix)), name)


def files_in(path: Path, name: str, spool: Path) -> Iterator[Item]:
    """Yield the files of the archive ``path``, which its places call ``name``; hidden ones are skipped.

    Raises ``Damaged`` for an archive that cannot be read to its end, ``OSError`` for one that cannot be opened,
    ``DiskError`` where there is no room in ``spool``.
    """
    with open_window(path) as window:
        yield from _entered(window, OUTER + os.fsencode(name) + b"\0" + window.stamp, path.name, "", 1, spool)


def read_place(place: bytes, root: Path, spool: Path) -> bytes:
    """Return the bytes of the file at ``place``, whose archive was found under ``root``.

    Raises ``OSError`` where they cannot be read, ESTALE where the archive has changed since, and for what
    :func:`files_in` knew that cannot be read.
    """
    if place.startswith(REFUSED):
        raise OSError(place[1:].decode())
    head, stamp, *numbers = place.split(b"\0")
    folder = root if head.startswith(OUTER) else spool
    with open_window(folder / os.fsdecode(head[1:]) if head[1:] else folder) as window:
        if stamp and stamp != window.stamp:
            raise OSError(errno.ESTALE, "the archive has changed since it was listed")
        return _read(window, tuple(map(int, numbers)))


def _entered(window: Window, archive: bytes, name: str, prefix: str, depth: int, spool: Path) -> Iterator[Item]:
    """Yield the files of an archive and of those within it, their paths beginning with ``prefix``."""
    lower = name.lower()
    if lower.endswith(tuple(DECOMPRESSORS)):
        with _unpacked(_decompressed(window, lower), window, archive, spool) as (unpacked, spooled):
            yield from _entered(unpacked, spooled, ".tar", prefix, depth, spool)
        return
    names = DistinctNames()
    for member in (zip_members if lower.endswith(".zip") else tar_members)(window):
        own = member.name.removeprefix("./")
        if any(part.startswith(".") and part.strip(".") for part in own.split("/")):
            continue
        if not is_archive(own) or member.refused:
            yield Item(prefix + names.distinct(own), archive, window, member)
        elif depth == DEEPEST:
            refused = member._replace(refused=f"an archive within {DEEPEST} others, which is not entered")
            yield Item(prefix + names.distinct(own), archive, window, refused)
        else:
            yield from _inner(Item(prefix + own, archive, window, member), depth + 1, spool)


def _inner(item: Item, depth: int, spool: Path) -> Iterator[Item]:
    """Yield the files of an archive that is a member of another."""
    window, member, name = item.window, item.member, item.path.rpartition("/")[2]
    prefix = without_suffix(item.path) + "/"
    try:
        if len(member.place) == 2:
            begin, size = member.place
        elif member.place[1] == STORED:
            begin, size = data_begin(window, member.place[0]), member.place[2]
        else:
            header, method, packed, size, crc = member.place
            chunks = zip_content(window, header, method, packed, size, crc)
            with _unpacked(chunks, window, item.place, spool) as (unpacked, spooled):
                yield from _entered(unpacked, spooled, name, prefix, depth, spool)
            return
        within = window._replace(begin=begin, end=min(begin + size, window.end))
        yield from _entered(within, item.archive, name, prefix, depth, spool)
    except (Damaged, OSError) as error:
        raise Damaged(f"in {printable(item.path)}: {error}") from None


@contextmanager
def _unpacked(chunks: Iterable[bytes], window: Window, what: bytes, spool: Path) -> Iterator[tuple[Window, bytes]]:
    """Write ``chunks`` into a file of their own, unless that is there already, and open it.

    The file is named after ``what`` it is unpacked from, and which file that lies in, as it is now.
    """
    status = os.fstat(window.descriptor)
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, window.begin)
    origin = b"\0".join([os.fsencode(window.path), *(b"%d" % fact for fact in facts), what])
    target = spool / hashlib.sha256(origin).hexdigest()[:32]
    unfinished = target.with_suffix(".part")
    if not target.exists():
        with disk_errors(target):
            spool.mkdir(parents=True, exist_ok=True)
            try:
                with open(unfinished, "wb") as file:
                    file.writelines(chunks)
                os.replace(unfinished, target)
            finally:
                unfinished.unlink(missing_ok=True)
    with open_window(target) as unpacked:
        yield unpacked, SPOOLED + os.fsencode(target.name) + b"\0"


def _decompressed(window: Window, name: str) -> Iterator[bytes]:
    """Decompress a window piece by piece; raise ``Damaged`` where that is impossible."""
    suffix = next(suffix for suffix in DECOMPRESSORS if name.endswith(suffix))
    with io.BufferedReader(WindowStream(window), CHUNK) as raw, DECOMPRESSORS[suffix](raw) as plain:
        try:
            while chunk := plain.read(CHUNK):
                yield chunk
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise Damaged(f"cannot be unpacked ({error})") from None


def _read(window: Window, place: tuple[int, ...]) -> bytes:
    if len(place) != 2:
        header, method, packed, size, crc = place
        return read_zip_member(window, header, method, packed, size, crc)
    check_bytes(place[1], "")
    return window.read_exactly(*place)
