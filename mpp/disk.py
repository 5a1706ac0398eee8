"""What outlives a crash, what only one process may have, and what a full disk says."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mpp.errors import ConfigError, DiskError


def cache_folder() -> Path:
    """Return the folder for what can be made again: $MPP_CACHE, or mpp in the user's cache folder."""
    folder = os.environ.get("MPP_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mpp")
    return Path(folder).expanduser().absolute()


def fsync_path(path: Path) -> None:
    """Bring a file's bytes, or the names in a folder, to the disk; raise ``OSError`` where that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path, *, shared: bool = False) -> TextIO:
    """Open and lock the file ``path``, which ends when it is closed or the process ends, also by kill -9.

    A ``shared`` lock excludes only those that want the file alone. Raises ``BlockingIOError`` where another process
    has it, ``ConfigError`` where its file system cannot lock, ``OSError`` where it cannot be opened.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise ConfigError(f"{path}: this file system cannot lock files", fix="mount it with locks") from None
        raise
    return lock


@contextmanager
def disk_errors(place: Path | str) -> Iterator[None]:
    """Turn a full or read-only disk into one ``DiskError`` that names the place and the room left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        room, fix = "", "get the permission to write there, or choose another OUT"
        if error.errno == errno.EFBIG:
            fix = "a larger limit for the size of a file (ulimit -f)"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "make room or choose another OUT"
            if isinstance(place, Path):
                statistics = os.statvfs(next(folder for folder in (place, *place.parents) if folder.exists()))
                room = f" ({statistics.f_bavail * statistics.f_frsize:,} bytes free)"
        reason = f"{place}: cannot write, {error.strerror or error}{room}"
        raise DiskError(reason, fix=f"{fix}; the same command then continues") from None
