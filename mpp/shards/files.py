"""The files of a source folder: which there are, how large, what they hold, how their names are printed."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mpp.errors import DataError
from mpp.shards.images import IMAGE_NAMES, has_signature

MAX_FILE_BYTES = 2**30


def walk(folder: str, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield every file under ``folder``, relative, in bytewise order; hidden names are skipped.

    Links to folders are followed unless they lead back into a folder that is being walked (``above``). Raises
    ``DataError`` for a folder that cannot be listed.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot list it, {error.strerror}", fix="make the folder readable") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from walk(entry.path, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file() or entry.is_symlink():  # a dangling link is listed, and later counted as unreadable
            yield prefix + entry.name


def is_image(root: Path, name: str) -> bool:
    """Say whether a file counts as an image: by its extension, or without one by its first bytes."""
    extension = PurePosixPath(name).suffix[1:].lower()
    if extension:
        return extension in IMAGE_NAMES
    try:
        with open(root / name, "rb") as file:
            return has_signature(file.read(16))
    except OSError:
        return False


def file_size(path: Path | str) -> int:
    """Return a file's size in bytes, 0 for one that cannot be looked at: reading it will say why."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def read_file(path: Path) -> bytes:
    """Read a file; raise ``OSError`` where that is impossible, EFBIG for files above ``MAX_FILE_BYTES``."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {MAX_FILE_BYTES}", str(path))
        return file.read()


def printable(text: str) -> str:
    """Return ``text`` with bytes of file names that are no UTF-8 written as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
