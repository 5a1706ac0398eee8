"""Copies of remote files on a node's disk, shared by all its processes: each made once, whole or not at all.

A copy is named by its key. While it is made it is ``KEY.part``, locked by who makes it: that lock also ends by
kill -9, so a part that nobody has locked is rubbish. A copy may be removed while others read it: what they have open
stays theirs.
"""

import errno
import fcntl
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable
from mpp.sources.remote import nothing, read_pieces, redact

KEY = re.compile(r"[0-9a-f]{16,64}")
PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class NodeCache:
    """The copies in ``folder``, together at most ``limit_bytes``; those unused for longest make room for others."""

    folder: Path
    limit_bytes: int

    def open(self, key: str) -> int | None:
        """Return a descriptor of the copy ``key`` to read from, None where there is none, and note that it was used."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # another user's copy is as good
            os.utime(descriptor)
        return descriptor

    def discard(self, key: str) -> None:
        """Remove the copy ``key``, whose bytes turned out to be wrong."""
        self._path(key).unlink(missing_ok=True)

    def fetch(
        self,
        key: str,
        url: str,
        size: int,
        sha256: str,
        *,
        wait: bool = False,
        on_retry: Callable[[], None] = nothing,
    ) -> bool:
        """Copy what a URL holds, ``size`` bytes with this ``sha256`` ("" for not known); say whether it is here now.

        It is not where another process is at it (``wait`` for that one instead), where the limit is too small, and,
        with a warning, where the disk is full. Raises ``DataError`` for another size or sha256, ``ConfigError`` for
        a folder that cannot be used, ``OSError`` where the bytes did not come.
        """
        if size > self.limit_bytes:
            return False
        try:
            part = self._claim(key, wait)
            if part is not None:
                return self._made(part, key, url, size, sha256, on_retry)
        except OSError as error:
            if error.errno not in FULL:
                raise
            advice = "make room there, or allow the cache less"
            warnings.warn(f"{self.folder}: full, shards are not kept there; {advice}", stacklevel=2)
            return False
        try:
            os.utime(self._path(key))  # it is about to be used
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's copy is as good
            pass
        return True

    def _path(self, key: str, suffix: str = "") -> Path:
        if not KEY.fullmatch(key):
            raise DataError(f"{printable(key)}: cannot name a copy", fix="16 to 64 of 0-9a-f, as of a sha256")
        return self.folder / (key + suffix)

    def _claim(self, key: str, wait: bool) -> FileIO | None:
        """Return the locked file to make a copy in, None where there is one by now or another process is at it."""
        path, temporary = self._path(key), self._path(key, PART)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not path.exists():
                part = _locked(temporary, wait)
                if part is None:
                    return None
                if _is_still(part.fileno(), temporary):
                    if not path.exists():
                        return part
                    temporary.unlink()
                part.close()
        except OSError as error:
            if error.errno in FULL:
                raise
            reason = f"{self.folder}: cannot be the cache, {error.strerror}"
            raise ConfigError(reason, fix="choose a folder on a local disk that you may write to") from None
        return None

    def _made(self, part: FileIO, key: str, url: str, size: int, sha256: str, on_retry: Callable[[], None]) -> bool:
        """Make a copy in the part that was claimed for it; say whether there was room."""
        temporary = self._path(key, PART)
        with part:
            try:
                if not self._reserve(part, size):
                    return False
                _download(part, url, size, sha256, on_retry)
                os.fsync(part.fileno())  # else a copy may hold zeros after the power went
                temporary.rename(self._path(key))
                return True
            finally:
                if _is_still(part.fileno(), temporary):
                    temporary.unlink()

    def _reserve(self, part: FileIO, size: int) -> bool:
        """Take ``size`` bytes of the limit and of the disk for a part; say whether the limit allows it."""
        part.truncate(size)  # so the other processes count it
        if not self._make_room():
            return False
        if sys.platform == "linux" and size:
            os.posix_fallocate(part.fileno(), 0, size)  # a full disk is noticed before the download
        return True

    def _make_room(self) -> bool:
        """Remove rubbish, then copies, until the rest is within the limit; say whether it is."""
        copies, total = [], 0
        with os.scandir(self.folder) as found:
            for entry in found:
                path = Path(entry.path)
                if not KEY.fullmatch(entry.name.removesuffix(PART)) or _removed_as_rubbish(path):
                    continue
                with suppress(FileNotFoundError):
                    status = path.stat()
                    total += status.st_size
                    if path.suffix != PART:
                        copies.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(copies):
            if total <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total <= self.limit_bytes


def _locked(path: Path, wait: bool) -> FileIO | None:
    """Open and lock a file to write to, None where another process has it and is not to be waited for."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def _is_still(descriptor: int, path: Path) -> bool:
    """Say whether an open file still is what a name stands for."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _removed_as_rubbish(path: Path) -> bool:
    """Remove a part that nobody is at; say whether that was done."""
    if path.suffix != PART:
        return False
    # To write, for some file systems lock nothing else; what another user is at is not ours to remove.
    with suppress(FileNotFoundError, BlockingIOError, PermissionError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(file.fileno(), path):
            path.unlink()
            return True
    return False


def _download(part: FileIO, url: str, size: int, sha256: str, on_retry: Callable[[], None]) -> None:
    """Write what a URL holds into a file; raise ``DataError`` where that is not what it should be."""
    digest = hashlib.sha256()
    fix = "put the right file there, or describe the set again as it is now"
    try:
        for piece in read_pieces(url, size, on_retry=on_retry):
            digest.update(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[part.write(rest) :]
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise DataError(str(error.strerror), fix=fix) from None
    if sha256 and digest.hexdigest() != sha256:
        # No failure of the run: what is read by ranges is checked sample by sample.
        raise OSError(errno.EIO, f"{redact(url)}: sha256 {digest.hexdigest()} instead of {sha256}")
