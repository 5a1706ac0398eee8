"""The files of a source folder: which there are, how large, what they hold, how their names are printed."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mpp.errors import DataError
from mpp.sources.entries import UNKNOWN

MAX_FILE_BYTES = 2**30
HEAD = 16  # bytes that tell what a file without an extension is
# File name extensions of images, also of kinds that are then refused.
IMAGE_NAMES = {
    "apng", "avif", "blp", "bmp", "cur", "dcx", "dds", "dib", "emf", "eps", "exr", "fit", "fits", "flc", "fli",
    "ftc", "ftu", "gbr", "gif", "heic", "heif", "icb", "icns", "ico", "im", "j2c", "j2k", "jfif", "jp2", "jpc",
    "jpe", "jpeg", "jpf", "jpg", "jpx", "mpo", "msp", "pbm", "pcd", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "ps",
    "psd", "pxr", "qoi", "ras", "rgb", "rgba", "sgi", "svg", "tga", "tif", "tiff", "vda", "vst", "wal", "webp",
    "wmf", "xbm", "xpm",
}  # fmt: skip
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
)


def walk(folder: str) -> Iterator[str]:
    """Yield every file under ``folder``, relative, in bytewise order; hidden names are skipped.

    Links to folders are followed unless they lead back into a folder that is being walked. The names of one folder
    on the way are in memory, never those of all. Raises ``DataError`` for a folder that cannot be listed.
    """
    root = os.fsencode(folder)
    above, pending = [_identity(root)], [_listed(root, b"")]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            above.pop()
            pending.pop()
            continue
        path, name, is_folder = found
        if not is_folder:
            yield os.fsdecode(name)
        elif (identity := _identity(path)) not in above:
            above.append(identity)
            pending.append(_listed(path, name + b"/"))


def _identity(folder: bytes) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _not_listed(folder, error) from None
    return status.st_dev, status.st_ino


def _listed(folder: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield ``(path, relative name, is it a folder)`` for what lies in one folder."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(b"."):
                    continue
                if _is(entry.is_dir):
                    folders.add(entry.name)
                elif not (_is(entry.is_file) or entry.is_symlink()):  # dangling links are later counted as unreadable
                    continue
                names.append(entry.name)
    except OSError as error:
        raise _not_listed(folder, error) from None
    names.sort()
    for name in names:
        yield os.path.join(folder, name), prefix + name, name in folders


def _is(question: Callable[[], bool]) -> bool:
    """Ask a directory entry what it is; a link that leads to itself is nothing."""
    try:
        return question()
    except OSError:
        return False


def _not_listed(folder: bytes, error: OSError) -> DataError:
    shown = printable(os.fsdecode(folder))
    return DataError(f"{shown}: cannot list it, {error.strerror}", fix="make the folder readable")


def named_as_image(name: str) -> bool | None:
    """Say whether a name's extension is that of an image, None where it has none."""
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() in IMAGE_NAMES if stem and extension else None


def is_image(root: Path, name: str) -> bool:
    """Say whether a file counts as an image: by its extension, or without one by its first bytes."""
    named = named_as_image(name)
    if named is not None:
        return named
    try:
        with open(root / name, "rb") as file:
            return has_signature(file.read(HEAD))
    except OSError:
        return False


def has_signature(head: bytes) -> bool:
    """Say whether bytes start as a file of one of ``FORMATS`` does; 16 bytes are enough."""
    boxed = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")
    return boxed or head.startswith(SIGNATURES)


def file_size(path: Path | str) -> int:
    """Return a file's size in bytes, ``UNKNOWN`` for one that cannot be looked at: reading it will say why."""
    try:
        return os.stat(path).st_size
    except OSError:
        return UNKNOWN


def read_file(path: Path | str) -> bytes:
    """Read a regular file; raise ``OSError`` where that is impossible, EFBIG for more than ``MAX_FILE_BYTES``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting for its other end
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        check_bytes(status.st_size, str(path))
        data = file.read(status.st_size + 1)  # the memory for what is asked for is taken at once
    if len(data) > status.st_size:
        raise OSError(errno.ESTALE, "it grew while it was read", str(path))
    return data


def check_bytes(size: int, name: str) -> None:
    """Raise ``OSError`` (EFBIG) for more than ``MAX_FILE_BYTES``."""
    if size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{size} bytes, at most {MAX_FILE_BYTES}", name)


def printable(text: str) -> str:
    """Return ``text`` with what cannot be printed written as escapes: control characters, bytes that are no UTF-8."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
