"""The files of a source folder: which there are, how large, what they hold, how their names are printed."""

import errno
import os
import re
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
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
)
SHORT_SIGNATURES = re.compile(rb"P[1-6f]\s|BM.{4}\0{4}", re.DOTALL)  # two letters alone begin texts, too


def walk(folder: str) -> Iterator[str]:
    """Yield every file under ``folder``, relative, in bytewise order; hidden names are skipped.

    Links to folders are followed where they lead out, to what was not walked before: no file is listed twice. The
    names of one folder on the way are in memory, and the targets of such links, never the names of all. Raises
    ``DataError`` for a folder that cannot be listed.
    """
    root = os.fsencode(folder)
    real = os.path.realpath(root)
    known, pending = {real}, [(real, _listed(root, b""))]
    while pending:
        above, names = pending[-1]
        for name, is_folder in names:
            if not is_folder:
                yield os.fsdecode(name)
                continue
            path, target = os.path.join(root, name), os.path.join(above, os.path.basename(name))
            is_link = os.path.islink(path)
            if is_link:
                target = os.path.realpath(path)
            if target in known or (is_link and _lies_in(target, known)):
                continue
            if is_link:
                known.add(target)
            pending.append((target, _listed(path, name + b"/")))
            break
        else:
            pending.pop()


def _lies_in(path: bytes, folders: set[bytes]) -> bool:
    while (above := os.path.dirname(path)) != path:
        if above in folders:
            return True
        path = above
    return False


def _listed(folder: bytes, prefix: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield ``(relative name, is it a folder)`` for what lies in one folder."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(b"."):
                    continue
                if not _is(entry.is_file):
                    if _is(entry.is_dir):
                        folders.add(entry.name)
                    elif not entry.is_symlink():  # dangling links are later counted as unreadable
                        continue
                names.append(entry.name)
    except OSError as error:
        raise _not_listed(folder, error) from None
    names.sort()
    for name in names:
        yield prefix + name, name in folders


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
        return has_signature(_head(root / name))
    except OSError:
        return False


def _head(path: Path) -> bytes:
    """Return the first bytes of a regular file, none of what is something else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting for its other end
    try:
        return os.read(descriptor, HEAD) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def has_signature(head: bytes) -> bool:
    """Say whether bytes start as a file of one of ``FORMATS`` does; 16 bytes are enough."""
    boxed = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")
    return boxed or head.startswith(SIGNATURES) or SHORT_SIGNATURES.match(head) is not None


def file_size(path: Path | str) -> int:
    """Return a file's size in bytes, ``UNKNOWN`` for one that cannot be looked at: reading it will say why."""
    try:
        return os.stat(path).st_size
    except OSError:
        return UNKNOWN


def read_file(path: Path | str) -> bytes:
    """Read a regular file; raise ``OSError`` where that is impossible, EFBIG for more than ``MAX_FILE_BYTES``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting for its other end
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        check_bytes(status.st_size, str(path))
        data = _read(descriptor, status.st_size)
    finally:
        os.close(descriptor)
    if len(data) > status.st_size:
        raise OSError(errno.ESTALE, "it grew while it was read", str(path))
    return data


def _read(descriptor: int, size: int) -> bytes:
    """Return the bytes of a file, one more than ``size`` if it has more."""
    data = os.read(descriptor, size + 1)  # the memory for what is asked for is taken at once
    while len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
        data += more
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
