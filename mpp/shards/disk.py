"""What outlives a crash and what only one process may have: syncing paths, locking files."""

import fcntl
import os
from pathlib import Path
from typing import TextIO


def fsync_path(path: Path) -> None:
    """Bring a file's bytes, or the names in a folder, to the disk; raise ``OSError`` where that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> TextIO:
    """Open and lock the file ``path``, which ends when it is closed or the process ends, also by kill -9.

    Raises ``BlockingIOError`` where another process has it, ``OSError`` where it cannot be opened or locked.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock
