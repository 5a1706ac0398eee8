"""Try a folder as a run will use it: its speed, its room, files that appear whole or not at all, and its locks."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mpp.disk import disk_errors, fsync_path, lock_file
from mpp.errors import DiskError

_BLOCK = 2**23
_MOST = 2**28
_SECONDS = 1.0
_LOCK = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


class DiskSpeed(NamedTuple):
    """Bytes a second, to the disk and back from it."""

    write: float
    read: float


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def free_bytes(folder: Path) -> int:
    """Return the room on the file system of a folder."""
    statistics = os.statvfs(folder)
    return statistics.f_bavail * statistics.f_frsize


def disk_speed(folder: Path) -> DiskSpeed:
    """Write for a second, at most 256 MB, fsync included, and read it back; raise ``DiskError``."""
    block = os.urandom(_BLOCK)
    with _scratch(folder) as place:
        path, began, written = place / "speed", time.perf_counter(), 0
        with path.open("wb", buffering=0) as file:
            while written < _MOST and time.perf_counter() - began < _SECONDS:
                written += file.write(block)
            os.fsync(file.fileno())
            write = written / (time.perf_counter() - began)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass
        return DiskSpeed(write, written / (time.perf_counter() - began))


def try_commit(folder: Path) -> None:
    """Write, fsync, rename and fsync the folder, as a checkpoint is; raise ``DiskError`` where that does not work."""
    with _scratch(folder) as place:
        temporary, final = place / "a.writing", place / "a"
        for text in ("old", "new"):
            temporary.write_text(text)
            fsync_path(temporary)
            temporary.replace(final)
            fsync_path(place)
        if final.read_text() != "new" or temporary.exists():
            raise DiskError(f"{folder}: a renamed file is not in the place of the old one", fix="another file system")


def try_lock(folder: Path) -> None:
    """Lock a file and see another process refused; raise ``DiskError`` where that does not work."""
    with _scratch(folder) as place:
        with lock_file(place / "lock"):
            if _another_locks(place / "lock"):
                raise DiskError(f"{folder}: two processes can have the same lock", fix="a mount with flock")
        if not _another_locks(place / "lock"):
            raise DiskError(f"{folder}: a lock stays after its process let it go", fix="a mount with flock")


def _another_locks(path: Path) -> bool:
    return subprocess.run([sys.executable, "-S", "-c", _LOCK, str(path)], capture_output=True).returncode == 0


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder inside that is gone afterwards; raise ``DiskError`` where it cannot be written."""
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".mpp-doctor-") as name:
        yield Path(name)
