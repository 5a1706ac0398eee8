"""The shard format on disk: open a finished set, read its tables and its members.

``index.json`` names the shards of all splits; ``.mpp/SPLIT/SHARD.json`` is a shard's commit record and
``.mpp/SPLIT/SHARD.members`` its table of members. A set may lie behind a URL, and so may each of its shards. Needs
numpy and nothing heavier.
"""

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpp.errors import DataError
from mpp.sources.remote import check_public, check_scheme, read_url, redact, scheme_of

INDEX = "index.json"
RECORDS = ".mpp"
ELSEWHERE = f"{RECORDS}/elsewhere"  # records and tables of shards that do not lie in the set
MEMBER = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
REBUILD = (
    "run the mpp-shard or mpp index command that wrote it again: it rewrites only what is missing or of another size"
)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard: ``bytes`` is the tar's size, ``members`` the extensions in the order of the table's columns.

    ``name`` is relative to the root, or an absolute path or a URL where the tar was written by others.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    layout_hash: str
    refused: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split; sample ids run over them in this order, from 0. ``root`` is a folder or a URL."""

    root: str
    split: str
    shards: tuple[ShardRecord, ...]
    classes: tuple[str, ...] | None
    fingerprint: str

    @property
    def samples(self) -> int:
        """Return the number of samples in the split."""
        return sum(shard.samples for shard in self.shards)

    def require_sources(self) -> None:
        """Raise ``DataError`` where the samples do not say what they were made of, as in tars written by others."""
        if not all("json" in shard.members for shard in self.shards):
            message = f"{shown(self.root)}: its tars were written by others and do not say where their images come from"
            raise DataError(message, fix="mpp-shard TARS OUT writes a set that does")

    def require_labels(self) -> None:
        """Raise ``DataError`` where the samples carry no labels."""
        if self.classes is None:
            raise DataError(
                f"{shown(self.root)}: the split {self.split} carries no labels",
                fix="mpp-shard SOURCE OUT labels=folders, from images in one folder a class",
            )


def sidecar(name: str, kind: str) -> str:
    """Return the name, relative to the root, of the record (``json``) or table (``members``) of the shard ``name``."""
    stem = name.removesuffix(".tar")
    if lies_elsewhere(name):
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{ELSEWHERE}/{digest}-{stem.rpartition('/')[2]}.{kind}"
    return f"{RECORDS}/{stem}.{kind}"


def place(root: str, name: str) -> str:
    """Return the path or URL of what ``name`` is called in the set ``root``."""
    return name if lies_elsewhere(name) else f"{root}/{name}"


def is_remote(root: str, shard: ShardRecord) -> bool:
    """Say whether the tar of a shard lies behind a URL."""
    return scheme_of(place(root, shard.name)) is not None


def shown(where: str) -> str:
    """Return a path or URL as a message may show it."""
    return where if scheme_of(where) is None else redact(where)


def how_to_verify(root: str) -> str:
    """Return what finds all that is wrong with a set."""
    if scheme_of(root) is None:
        return f"mpp verify {root} full=true"
    return "copy the set to a disk, then mpp verify COPY full=true"


def lies_elsewhere(name: str) -> bool:
    return name.startswith("/") or scheme_of(name) is not None


def local_root(root: str | Path) -> Path:
    """Return ``root`` as a path; raise ``DataError`` for a URL, for what only reads sets from file systems."""
    if re.match(r"\w+:/", str(root)):
        message = f"{shown(str(root))}: this reads sets from file systems alone"
        raise DataError(message, fix="copy the set to a disk, or mount it")
    return Path(root)


def split_names(root: str | Path) -> tuple[str, ...]:
    """Return the splits of a finished set; raise ``DataError`` for a folder that is none."""
    return tuple(read_index(_root(root))["splits"])


def open_shards(root: str | Path, split: str) -> ShardSet:
    """Open one split after comparing the size of every shard on a disk with its record.

    Shards behind URLs are not asked for: that would be a request a shard. Raises ``DataError`` for a folder or URL
    that is no finished set, a split that it has not, and a shard that is missing or has another size, with the number
    of samples that are left in it; ``ConfigError`` for URLs that are not read.
    """
    root = _root(root)
    index = read_index(root)
    if split not in index["splits"]:
        known = ", ".join(index["splits"]) or "none"
        raise DataError(f"{shown(root)}: no split {split!r}, it has {known}", fix="name one")
    shards = tuple(record_of(entry) for entry in index["shardlist"] if entry["split"] == split)
    problems = [f"{name}: twice in {INDEX}" for name, count in Counter(one.name for one in shards).items() if count > 1]
    problems += [problem for shard in shards for problem in check_size(root, shard)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{shown(root)}: {problems[0]}{more}", fix=REBUILD)
    classes = None if index["classes"] is None else tuple(index["classes"])
    return ShardSet(root, split, shards, classes, fingerprint(shards))


def fingerprint(shards: Iterable[ShardRecord]) -> str:
    """Return the sha256 over names, sample counts and hashes of shards.

    Where tars lie elsewhere, the same ones in another folder are the same set; what is read of them counts.
    """
    text = json.dumps([_identity(shard) for shard in shards])
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(shard: ShardRecord) -> list[str | int]:
    if lies_elsewhere(shard.name):
        return [shard.name.rpartition("/")[2], shard.samples, shard.sha256, shard.layout_hash]
    return [shard.name, shard.samples, shard.sha256]


def read_members(shards: ShardSet, shard: int) -> npt.NDArray[np.void]:
    """Return the table of members of one shard, dtype ``MEMBER``, shape [samples, len(members)].

    Raises ``DataError`` where it is missing or of another size.
    """
    return read_table(shards.root, shards.shards[shard])


def read_payload(descriptor: int, member: tuple[int, int, int], where: str, root: str) -> bytes:
    """Return the bytes of one member, (offset, size, crc32), of the open tar.

    Raises ``DataError`` calling it ``where`` in the set ``root``, where they are not those that were written.
    """
    offset, size, crc32 = member
    payload = os.pread(descriptor, size, offset)
    wrong = damage(payload, size, crc32)
    if not wrong:
        return payload
    raise DataError(f"{where} is damaged: {wrong} (offset {offset})", fix=f"mpp verify {root} full=true")


def damage(payload: bytes | memoryview, size: int, crc32: int) -> str:
    """Return how the bytes of a member differ from what was written: nothing where they do not."""
    found = zlib.crc32(payload)
    if len(payload) == size and found == crc32:
        return ""
    seen = f"{len(payload)} bytes" if len(payload) != size else f"CRC {found:08x}"
    return f"{seen}, expected {size} bytes with CRC {crc32:08x}"


def check_size(root: str, shard: ShardRecord) -> list[str]:
    """Return what is wrong with a shard's size, or its end, on disk: nothing, or one line; nothing behind a URL."""
    if is_remote(root, shard):
        return []
    try:
        size = os.stat(place(root, shard.name)).st_size
    except OSError as error:
        return [f"{shard.name}: {error.strerror}, {shard.bytes} bytes expected"]
    if size == shard.bytes:
        return _check_last(root, shard)
    left = ""
    if size < shard.bytes:
        try:
            table = read_table(root, shard)
            ends = (table["offset"] + table["size"]).max(axis=1)
            left = f"{int((ends <= size).sum())} of {shard.samples} samples, "
        except DataError:
            left = ""
    return [f"{shard.name}: {left}{size} of {shard.bytes} bytes"]


def _check_last(root: str, shard: ShardRecord) -> list[str]:
    """Return what is wrong with the last member of a shard on a disk: copying that broke off may leave zeros there."""
    row = len(shard.members) * MEMBER.itemsize
    try:
        with open(place(root, sidecar(shard.name, "members")), "rb") as table:
            raw = os.pread(table.fileno(), row, max(0, shard.samples - 1) * row)
        if len(raw) < row:
            return []  # a table of another size is said when it is read
        with open(place(root, shard.name), "rb") as tar:
            read_payload(tar.fileno(), np.frombuffer(raw, MEMBER)[-1].item(), f"{shard.name}: the last member", root)
    except DataError as error:
        return [str(error).partition("\n")[0]]
    except OSError as error:
        return [] if isinstance(error, FileNotFoundError) else [f"{shard.name}: {error.strerror}"]
    return []


def _root(root: str | Path) -> str:
    """Return ``root`` without slashes at its end; raise ``ConfigError`` for URLs that are not read."""
    scheme = scheme_of(str(root))
    if scheme is None:
        return str(local_root(root))
    check_scheme(scheme)
    check_public(str(root))
    return str(root).rstrip("/")


def read_index(root: str) -> dict[str, Any]:
    """Read ``index.json``; raise ``DataError`` where it is missing or not ours."""
    file = place(root, INDEX)
    try:
        index = json.loads(read_file(file))
    except OSError as error:
        started = scheme_of(root) is None and os.path.exists(place(root, f"{RECORDS}/layout.json"))
        why = "sharding has not finished" if started else f"no shards here, {INDEX}: {error.strerror}"
        raise DataError(f"{shown(root)}: {why}", fix=REBUILD if started else "mpp-shard SOURCE OUT") from None
    except ValueError as error:
        raise DataError(f"{shown(file)}: damaged, {error}", fix=REBUILD) from None
    if not isinstance(index, dict) or "splits" not in index:
        raise DataError(f"{shown(file)}: not written by mpp-shard", fix="mpp-shard SOURCE OUT")
    return index


def read_file(where: str) -> bytes:
    """Return what a path or a URL holds; raise ``OSError``."""
    return Path(where).read_bytes() if scheme_of(where) is None else read_url(where)


def record_of(entry: dict[str, Any]) -> ShardRecord:
    """Read a shard's record from an entry of the index or from its commit record."""
    return ShardRecord(
        name=entry.get("url") or entry["name"],
        samples=entry["samples"],
        bytes=entry["bytes"],
        sha256=entry["sha256"],
        layout_hash=entry["layout_hash"],
        refused=entry["refused"],
        members=tuple(entry["members"]),
    )


def read_table(root: str, shard: ShardRecord) -> npt.NDArray[np.void]:
    path = place(root, sidecar(shard.name, "members"))
    try:
        raw = read_file(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror}", fix=REBUILD) from None
    expected = shard.samples * len(shard.members) * MEMBER.itemsize
    if len(raw) != expected:
        raise DataError(f"{shown(path)}: {len(raw)} of {expected} bytes", fix=REBUILD)
    return np.frombuffer(raw, MEMBER).reshape(shard.samples, len(shard.members))
