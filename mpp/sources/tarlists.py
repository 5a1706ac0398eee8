"""Which tars a source of WebDataset shards means: a folder, a tar, a glob, or a pattern with braces, also of URLs."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable, walk
from mpp.sources.nested import DECOMPRESSORS, NOT_READ
from mpp.sources.remote import check_public, check_scheme, redact, scheme_of
from mpp.sources.splits import DEFAULT, SPLIT_OF, word_split

MOST = 1_000_000  # tars of one pattern
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
WILD = re.compile(r"[*?\[{]")
COMPRESSED = (*DECOMPRESSORS, *(name for name in NOT_READ if name.startswith((".tar.", ".t"))))


class Tar(NamedTuple):
    """A tar by its absolute path or its URL, its split, its size in bytes and its time; both 0 for a URL."""

    name: str
    split: str
    size: int = 0
    changed: int = 0


def find_tars(source: str, split: str | None = None) -> tuple[Tar, ...]:
    """Return the tars that ``source`` means, in order; those of folders and globs sorted by name.

    ``split`` is that of all; where it is not given, words in the names below what is fixed in ``source`` say it, or the
    name of the folder there. Raises ``ConfigError`` for a pattern or URL that is not read and for compressed tars,
    ``DataError`` where there are none, for a file that is not there, and for one that is named twice.
    """
    names = list(_names(source))
    unread = [name for name in names if name.lower().endswith(COMPRESSED)]
    if unread:
        message = f"{_shown(unread[0])}: a compressed tar cannot be read at random ({len(unread)} of {len(names)})"
        raise ConfigError(message, fix="unpack them, or mpp-shard SOURCE OUT, which takes them as they are")
    if not names:
        raise DataError(f"{_shown(source)}: no tars there", fix="name a folder of tars, a tar, or x-{000..146}.tar")
    fixed = _fixed(source)
    tars = [_tar(name, split or _split(name, fixed)) for name in names]
    known: set[str] = set()
    for tar in tars:
        if tar.name in known:
            raise DataError(f"{_shown(source)}: {_shown(tar.name)} is named twice", fix="name every tar once")
        known.add(tar.name)
    return tuple(tars)


def means_tars(source: str) -> bool:
    """Say whether ``source`` names tars rather than a folder or a URL of a set: by its form alone."""
    return not os.path.isdir(source) and (source.endswith((".tar", *COMPRESSED)) or WILD.search(source) is not None)


def _names(source: str) -> Iterator[str]:
    """Yield paths and URLs of tars as ``source`` gives them."""
    scheme = scheme_of(source)
    if scheme is not None:
        yield from map(_checked_url, _expanded(source))
    elif os.path.isdir(source):
        endings = (".tar", *COMPRESSED)
        yield from (os.path.join(source, name) for name in walk(source) if name.lower().endswith(endings))
    elif os.path.lexists(source):
        yield source
    else:
        for name in _expanded(source):
            if glob.has_magic(name) and not os.path.lexists(name):
                yield from sorted(glob.glob(name, recursive=True), key=os.fsencode)
            else:
                yield name


def _expanded(pattern: str) -> Iterable[str]:
    """Expand braces as WebDataset does; raise ``ConfigError`` for braces that are open, and for too many names."""
    import braceexpand

    most = max((abs(int(last) - int(first)) for first, last in RANGE.findall(pattern)), default=0)
    try:
        found = list(islice(braceexpand.braceexpand(pattern), MOST + 1)) if most < MOST else []
    except ValueError as error:
        raise ConfigError(f"{_shown(pattern)}: {type(error).__name__}", fix="write x-{000..146}.tar") from None
    if not 0 < len(found) <= MOST:
        raise ConfigError(f"{_shown(pattern)}: more than {MOST:,} tars", fix="write a smaller range")
    return found


def _checked_url(url: str) -> str:
    """Return a URL without secrets, a path for ``file://``; raise ``ConfigError`` for others: an index shows names."""
    scheme = scheme_of(url) or ""
    check_scheme(scheme)
    parts = urlsplit(url)
    if scheme == "file":
        return unquote(parts.path)
    check_public(url)
    if WILD.search(url):
        raise ConfigError(f"{redact(url)}: * and ? stand for files of this machine alone", fix="write x-{000..146}.tar")
    return url


def _fixed(source: str) -> str:
    """Return what comes before the part of ``source`` that its tars differ in, up to and with a slash."""
    if scheme_of(source) is None:
        if os.path.isdir(source):
            return os.path.abspath(source) + "/"
        source = os.path.abspath(source)
    wild = WILD.search(source)
    return source[: source.rfind("/", 0, wild.start() if wild else len(source)) + 1]


def _split(name: str, fixed: str) -> str:
    path = name if scheme_of(name) else os.path.abspath(name)
    below = path.removeprefix(fixed)
    return word_split(below) or SPLIT_OF.get(fixed.rstrip("/").rpartition("/")[2].lower(), DEFAULT)


def _tar(name: str, split: str) -> Tar:
    """Look at a tar; raise ``DataError`` where it is not there, is no file, or has a name that cannot be written."""
    if scheme_of(name) is not None:
        return Tar(name, split)
    path = os.path.abspath(name)
    shown = printable(path)
    if not path.isprintable():
        raise DataError(f"{shown}: the path has characters that cannot be printed", fix="rename it")
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown}: {error.strerror}", fix="mend the pattern, or get the tar") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown}: no file", fix="name a folder of tars, a tar, or x-{000..146}.tar")
    return Tar(path, split, status.st_size, status.st_mtime_ns)


def _shown(name: str) -> str:
    return printable(name) if scheme_of(name) is None else redact(name)
