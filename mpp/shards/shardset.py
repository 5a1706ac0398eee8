"""The shard format on disk: open a finished set, read its tables, verify it.

``index.json`` names the shards of all splits; ``.mpp/SPLIT/SHARD.json`` is a shard's commit record and
``.mpp/SPLIT/SHARD.members`` its table of members. Needs numpy and nothing heavier, except to decode.
"""

import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpp.errors import DataError

INDEX = "index.json"
RECORDS = ".mpp"
MEMBER = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
REBUILD = "run the mpp-shard command that wrote it again: it rewrites only what is missing or of another size"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard: ``name`` is relative to the root, ``bytes`` the tar's size, ``members`` extensions in tar order."""

    name: str
    samples: int
    bytes: int
    sha256: str
    layout_hash: str
    refused: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split; sample ids run over them in this order, from 0."""

    root: Path
    split: str
    shards: tuple[ShardRecord, ...]
    classes: tuple[str, ...] | None
    fingerprint: str

    @property
    def samples(self) -> int:
        """Return the number of samples in the split."""
        return sum(shard.samples for shard in self.shards)

    def require_labels(self) -> None:
        """Raise ``DataError`` where the samples carry no labels."""
        if self.classes is None:
            raise DataError(
                f"{self.root}: the split {self.split} carries no labels",
                fix="mpp-shard SOURCE OUT labels=folders, from images in one folder a class",
            )


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at and what is wrong with it, one line a problem."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]


def sidecar(name: str, kind: str) -> str:
    """Return the name, relative to the root, of the record (``json``) or table (``members``) of the shard ``name``."""
    return f"{RECORDS}/{name.removesuffix('.tar')}.{kind}"


def split_names(root: str | Path) -> tuple[str, ...]:
    """Return the splits of a finished set; raise ``DataError`` for a folder that is none."""
    return tuple(_read_index(Path(root))["splits"])


def open_shards(root: str | Path, split: str) -> ShardSet:
    """Open one split after comparing every shard's size with its record.

    Raises ``DataError`` for a folder that is no finished set, a split that it has not, and a shard that is
    missing or has another size, with the number of samples that are left in it.
    """
    root = Path(root)
    index = _read_index(root)
    if split not in index["splits"]:
        raise DataError(f"{root}: no split {split!r}, it has {', '.join(index['splits']) or 'none'}", fix="name one")
    shards = tuple(_record(entry) for entry in index["shardlist"] if entry["split"] == split)
    problems = [problem for shard in shards for problem in check_size(root, shard)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{root}: {problems[0]}{more}", fix=REBUILD)
    classes = None if index["classes"] is None else tuple(index["classes"])
    return ShardSet(root, split, shards, classes, fingerprint(shards))


def fingerprint(shards: Iterable[ShardRecord]) -> str:
    """Return the sha256 over names, sample counts and hashes of shards."""
    text = json.dumps([[shard.name, shard.samples, shard.sha256] for shard in shards])
    return hashlib.sha256(text.encode()).hexdigest()


def read_members(shards: ShardSet, shard: int) -> npt.NDArray[np.void]:
    """Return the table of members of one shard, dtype ``MEMBER``, shape [samples, len(members)].

    Raises ``DataError`` where it is missing or of another size.
    """
    return _read_table(shards.root, shards.shards[shard])


def read_payload(descriptor: int, member: tuple[int, int, int], where: str, root: Path) -> bytes:
    """Return the bytes of one member, (offset, size, crc32), of the open tar.

    Raises ``DataError`` calling it ``where`` in the set ``root``, where they are not those that were written.
    """
    offset, size, crc32 = member
    payload = os.pread(descriptor, size, offset)
    if len(payload) == size and zlib.crc32(payload) == crc32:
        return payload
    seen = f"{len(payload)} bytes" if len(payload) != size else f"CRC {zlib.crc32(payload):08x}"
    expected = f"expected {size} bytes with CRC {crc32:08x} (offset {offset})"
    raise DataError(f"{where} is damaged: {seen}, {expected}", fix=f"mpp verify {root} full=true")


def check_size(root: Path, shard: ShardRecord) -> list[str]:
    """Return what is wrong with a shard's size on disk: nothing, or one line."""
    try:
        size = os.stat(root / shard.name).st_size
    except OSError as error:
        return [f"{shard.name}: {error.strerror}, {shard.bytes} bytes expected"]
    if size == shard.bytes:
        return []
    left = ""
    if size < shard.bytes:
        try:
            table = _read_table(root, shard)
            ends = table["offset"][:, -1] + table["size"][:, -1]
            left = f"{int((ends <= size).sum())} of {shard.samples} samples, "
        except DataError:
            left = ""
    return [f"{shard.name}: {left}{size} of {shard.bytes} bytes"]


def verify(root: Path, full: bool, map_shards: Callable[..., Iterator[list[str]]] = map) -> VerifyReport:
    """Compare a set with its records: sizes and counts, and with ``full`` every hash, CRC and image.

    ``map_shards(function, shards)`` runs the checks, by default here. Raises ``DataError`` for a folder that is
    no finished set.
    """
    root = Path(root)
    shards = [_record(entry) for entry in _read_index(root)["shardlist"]]
    doubles = len(shards) - len({Path(shard.name).name for shard in shards})
    problems = [f"{doubles} shard names occur twice"] if doubles else []
    listed = {shard.name for shard in shards}
    found_tars = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.tar"))
    problems += [f"{name}: not in {INDEX}" for name in found_tars if name not in listed]
    for found in map_shards(partial(check_shard, root, full), shards):
        problems += found
    total = sum(shard.bytes for shard in shards)
    return VerifyReport(len(shards), sum(shard.samples for shard in shards), total, tuple(sorted(problems)))


def check_shard(root: Path, full: bool, shard: ShardRecord) -> list[str]:
    """Return every problem of one shard, a line each."""
    problems = check_size(root, shard)
    try:
        commit = json.loads((root / RECORDS / shard.name).with_suffix(".json").read_text())
        if _record(commit) != shard:
            problems.append(f"{shard.name}: commit record and {INDEX} differ")
        table = _read_table(root, shard)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [*problems, f"{shard.name}: commit record cannot be read, {error}"]
    except DataError as error:
        return [*problems, str(error)]
    if problems or not full:
        return problems
    data = (root / shard.name).read_bytes()
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append(f"{shard.name}: sha256 differs from its record")
    for sample in range(shard.samples):
        problems += _check_sample(data, shard, table, sample)
    return problems


def _check_sample(data: bytes, shard: ShardRecord, table: npt.NDArray[np.void], sample: int) -> list[str]:
    """Compare one sample's members with their CRCs and parse them; decode its image."""
    from PIL import Image

    key = "?"
    try:
        for extension, member in zip(shard.members, table[sample], strict=True):
            begin = int(member["offset"])
            header, payload = data[begin - 512 : begin], data[begin : begin + int(member["size"])]
            key, _, suffix = header[:100].rstrip(b"\0").decode("ascii").partition(".")
            if suffix != extension or zlib.crc32(payload) != int(member["crc32"]):
                return [f"{shard.name}: sample {sample} (key {key}): {extension} differs from its record"]
            if extension == "cls":
                int(payload)
            elif extension == "json":
                json.loads(payload)
            else:
                Image.open(io.BytesIO(payload), formats=("JPEG", "PNG")).load()
    except Exception as error:  # whatever a decoder raises on damaged bytes is the finding
        return [f"{shard.name}: sample {sample} (key {key}): {type(error).__name__}: {error}"]
    return []


def _read_index(root: Path) -> dict[str, Any]:
    """Read ``index.json``; raise ``DataError`` where it is missing or not ours."""
    if re.match(r"\w+:/", str(root)):
        raise DataError(f"{root}: sets are read from file systems", fix="copy the set to a disk, or mount it")
    try:
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
    except OSError as error:
        started = (root / RECORDS / "layout.json").exists()
        why = "sharding has not finished" if started else f"no shards here, {INDEX}: {error.strerror}"
        raise DataError(f"{root}: {why}", fix=REBUILD if started else "mpp-shard SOURCE OUT") from None
    except ValueError as error:
        raise DataError(f"{root / INDEX}: damaged, {error}", fix=REBUILD) from None
    if not isinstance(index, dict) or "splits" not in index:
        raise DataError(f"{root / INDEX}: not written by mpp-shard", fix="mpp-shard SOURCE OUT")
    return index


def _record(entry: dict[str, Any]) -> ShardRecord:
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


def _read_table(root: Path, shard: ShardRecord) -> npt.NDArray[np.void]:
    path = (root / RECORDS / shard.name).with_suffix(".members")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", fix=REBUILD) from None
    expected = shard.samples * len(shard.members) * MEMBER.itemsize
    if len(raw) != expected:
        raise DataError(f"{path}: {len(raw)} of {expected} bytes", fix=REBUILD)
    return np.frombuffer(raw, MEMBER).reshape(shard.samples, len(shard.members))
