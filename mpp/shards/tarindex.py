"""Index one tar written by others: which members are whose image and label, where they lie, and what hashes they have.

The tar is read once, from its beginning to its end. Nothing is unpacked, and no name in it is used as a path.
"""

import hashlib
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpp.disk import disk_errors
from mpp.errors import ConfigError, DataError
from mpp.shards.outputs import LocalOutput, temporary_file
from mpp.shards.shardset import MEMBER, ShardRecord, shown, sidecar
from mpp.sources.files import HEAD, MAX_FILE_BYTES, named_as_image, printable
from mpp.sources.mappings import is_number
from mpp.sources.members import Damaged, DistinctNames, Member, Window, open_window
from mpp.sources.remote import download, scheme_of
from mpp.sources.tarlists import Tar
from mpp.sources.tars import tar_members

CHUNK = 2**20
LONGEST_CLASS = 256  # bytes of a .cls member
META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset keeps for itself
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarTask:
    """The tar to index into the folder ``out``: ``labels`` is auto or none, ``image`` the extension of the images."""

    tar: Tar
    out: Path
    labels: str
    image: str | None


class Amount(NamedTuple):
    """How many samples are so, and the key of the first of them."""

    number: int
    first: str


NONE = Amount(0, "")


class IndexedTar(NamedTuple):
    """A tar's record, and what its samples lack.

    ``bare`` are those without an image, which are left out, ``unlabelled`` those with an image and no class;
    ``largest`` is the largest class and its sample's key.
    """

    record: ShardRecord
    bare: Amount
    unlabelled: Amount
    largest: tuple[int, str]


class _Named(NamedTuple):
    key: str
    extension: str
    member: Member


class _Pass:
    """One pass over a tar: every byte goes into its sha256."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.digest = hashlib.sha256()
        self._position = window.begin

    def to(self, end: int) -> int:
        """Go on to byte ``end``; return the CRC32 of what came."""
        crc = 0
        while self._position < end:
            chunk = self.window.read_exactly(self._position, min(CHUNK, end - self._position))
            self.digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
            self._position += len(chunk)
        return crc


@dataclass
class _Found:
    """What a pass has found so far; ``members`` are offset, size and CRC of the class and the image of each sample."""

    members: "array[int]" = field(default_factory=lambda: array("Q"))
    extensions: Counter[str] = field(default_factory=Counter)
    bare: Amount = NONE
    unlabelled: Amount = NONE
    largest: tuple[int, str] = (-1, "")
    keys: DistinctNames = field(default_factory=DistinctNames)
    repeated: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.extensions.total()


def index_tar(task: TarTask) -> IndexedTar:
    """Write the table and the record of a tar into ``task.out``, unless only some of its samples have a class.

    Raises ``DataError`` for a tar that is empty, damaged, cut off, has a key twice, or classes that are no numbers;
    ``ConfigError`` for samples with several images; ``DiskError`` where there is no room.
    """
    with _opened(task) as window:
        before = window.stamp
        found, sha256 = _read(task, window)
        as_listed = scheme_of(task.tar.name) is not None or before == b"%x.%x" % (task.tar.size, task.tar.changed)
        if window.stamp != before or not as_listed:
            raise DataError(f"{shown(task.tar.name)}: changed while it was indexed", fix="index it when it is written")
    labelled = not found.unlabelled.number
    record, table = _record(task.tar.name, window.end, sha256, found, labelled)
    if labelled or found.unlabelled.number == found.samples:
        output = LocalOutput(task.out)
        with disk_errors(task.out):
            output.put(sidecar(record.name, "members"), table)
            output.put(sidecar(record.name, "json"), json.dumps(asdict(record), ensure_ascii=False).encode())
    return IndexedTar(record, found.bare, found.unlabelled, found.largest)


@contextmanager
def _opened(task: TarTask) -> Iterator[Window]:
    """Open the tar, one behind a URL as a file that is gone afterwards; raise ``DataError`` where that cannot be."""
    name = task.tar.name
    try:
        if scheme_of(name) is None:
            with open_window(Path(name)) as window:
                yield window
            return
        with temporary_file(task.out, name) as file:
            with disk_errors(task.out):
                download(name, file)
            with open_window(file) as window:
                yield window
    except OSError as error:
        raise DataError(f"{shown(name)}: {error.strerror or error}", fix="mend the access, and index again") from None


def _read(task: TarTask, window: Window) -> tuple[_Found, str]:
    """Read the whole tar; return what is in it and its sha256."""
    shown_name, found, reading = shown(task.tar.name), _Found(), _Pass(window)
    head = window.read(0, 2 * HEAD)
    if not head:
        raise DataError(f"{shown_name}: empty, 0 bytes", fix=f"get {shown_name.rpartition('/')[2]} again")
    packed = next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), None)
    if packed is not None:
        message = f"{shown_name}: compressed by {packed}, and cannot be read at random"
        raise ConfigError(message, fix="unpack it, or mpp-shard SOURCE OUT")
    damage: list[Damaged] = []
    for key, members in groupby(_named(window, damage), lambda named: named.key):
        _take(task, reading, found, key, members)
    if damage:
        begin = "" if found.samples else f"; it begins with {head!r}"
        what = f"{shown_name}: {damage[0]}; {found.samples:,} samples before that{begin}"
        raise DataError(what, fix=f"get {shown_name.rpartition('/')[2]} again")
    reading.to(window.end)
    if found.repeated:
        keys = f"{', '.join(found.repeated[:3])}{', ...' if len(found.repeated) > 3 else ''}"
        message = f"{shown_name}: {len(found.repeated)} keys come back after others ({keys})"
        raise DataError(message, fix="put the members of a sample side by side, under a key of its own")
    if not found.samples:
        asked = f" with the extension {task.image}" if task.image else ""
        without = f"no images{asked} in it, {found.bare.number:,} samples without"
        message = f"{shown_name}: {without if found.bare.number else 'empty, no samples in it'}"
        raise DataError(message, fix="leave this tar out, or image=EXT, the extension of the images")
    return found, reading.digest.hexdigest()


def _named(window: Window, damage: list[Damaged]) -> Iterator[_Named]:
    """Yield the members that belong to a sample, with its key and their extension: cut at the first dot of the name.

    Damage ends them and is put into ``damage``, so that the sample before it counts.
    """
    try:
        for member in tar_members(window):
            folder, slash, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if stem and dot and not member.refused and not META.match(member.name):
                yield _Named(folder + slash + stem, extension.lower(), member)
    except Damaged as error:
        damage.append(error)


def _take(task: TarTask, reading: _Pass, found: _Found, key: str, members: Iterator[_Named]) -> None:
    """Note one sample."""
    where, shown_key = shown(task.tar.name), printable(key)
    if found.keys.distinct(key) != key:
        found.repeated.append(shown_key)
    places: dict[str, tuple[int, int, int]] = {}
    known, label = set[str](), -1
    for _, extension, member in members:
        if extension in known:
            message = f"{where}: two members called {shown_key}.{printable(extension)}"
            raise DataError(message, fix="put the members of a sample side by side, under a key of its own")
        known.add(extension)
        if extension == "cls" and task.labels == "auto":
            label = _label(reading.window, member, f"{where}: {printable(member.name)}")
        elif not (extension == task.image if task.image else named_as_image("x." + extension)):
            continue
        begin, size = member.place
        if size > MAX_FILE_BYTES:
            raise DataError(f"{where}: {printable(member.name)} has {size:,} bytes, at most {MAX_FILE_BYTES:,}")
        reading.to(begin)
        places[extension] = (begin, size, reading.to(begin + size))
    cls = places.pop("cls", (0, 0, 0))
    if len(places) > 1:
        several = f"{len(places)} images in the sample {shown_key} ({', '.join(map(printable, places))})"
        raise ConfigError(f"{where}: {several}", fix=f"mpp index TARS OUT image={printable(next(iter(places)))}")
    if not places:
        found.bare = Amount(found.bare.number + 1, found.bare.first or shown_key)
        return
    found.extensions.update(places.keys())
    for place in (cls, *places.values()):
        found.members.extend(place)
    found.largest = max(found.largest, (label, shown_key), key=lambda pair: pair[0])
    if label < 0:
        found.unlabelled = Amount(found.unlabelled.number + 1, found.unlabelled.first or shown_key)


def _label(window: Window, member: Member, where: str) -> int:
    """Return the class in a ``.cls`` member; raise ``DataError`` where that is no whole number."""
    text = window.read_exactly(member.place[0], min(member.size, LONGEST_CLASS)).strip()
    if member.size > LONGEST_CLASS or not is_number(text.decode("latin-1")):
        raise DataError(
            f"{where} holds {text[:40]!r}, a class is a number", fix="mpp index TARS OUT labels=none, or mpp-shard"
        )
    return int(text)


def _record(name: str, size: int, sha256: str, found: _Found, labelled: bool) -> tuple[ShardRecord, bytes]:
    """Return the record of a tar and the bytes of its table; its ``layout_hash`` is that of the table."""
    numbers = np.frombuffer(found.members, np.uint64).reshape(found.samples, 2, 3)[:, 0 if labelled else 1 :]
    table = np.empty(numbers.shape[:2], MEMBER)
    for column, part in enumerate(MEMBER.names or ()):
        table[part] = numbers[..., column]
    raw = table.tobytes()
    most = max(sorted(found.extensions), key=lambda extension: found.extensions[extension])
    members = ("cls", most) if labelled else (most,)
    layout_hash = hashlib.sha256(raw).hexdigest()
    return ShardRecord(name, found.samples, size, sha256, layout_hash, found.bare.number, members), raw
