"""Which images of one set are in another one too: a test image that was trained on tells nothing of others.

Images are the same where their bytes are, or where they were made of the same bytes, as far as both sets say what they
were made of. Candidates for the first are found in the tables of members, by size and CRC32, and confirmed by sha256.
Needs memory for about 50 bytes an image of the first set, and for each image of the other that is shared.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from mpp.errors import DataError
from mpp.shards.duplicates import HASHED, Hashed, Int64s
from mpp.shards.progress import shown as shown_progress
from mpp.shards.shardset import (
    REBUILD,
    ShardRecord,
    ShardSet,
    damage,
    how_to_verify,
    is_remote,
    place,
    read_file,
    read_payload,
    read_table,
    shown,
    sidecar,
)
from mpp.sources.files import printable
from mpp.sources.remote import read_range

EXAMPLES = 3
LARGE = 200_000  # images of both sets, above which it is shown how far the comparison is
_NAME = 100  # bytes of a name in a tar's header, which lies a block before the data
_BLOCK = 512

Uint64s = npt.NDArray[np.uint64]
Member = tuple[int, int, int]  # offset, size, crc32


@dataclass(frozen=True)
class Shared:
    """How many images of one set are in the other too, and a few of them: what each is called in either set."""

    count: int
    examples: tuple[tuple[str, str], ...]


class _Pairs(NamedTuple):
    """Numbers [n] of images in the one set, and for each that of the first equal one in the other."""

    ones: Int64s
    others: Int64s


def shared_images(one: ShardSet, other: ShardSet) -> Shared:
    """Count the images of ``one`` that are in ``other`` too, those that are twice in ``one`` twice.

    Where a set lies behind a URL, or its tars were written by others, only images with the same bytes are found.
    Raises ``DataError`` where a table, or an image that may be shared, cannot be read.
    """
    parts = [_same_bytes(one, other)]
    if _says_sources(one) and _says_sources(other) and (_alters(one) or _alters(other)):
        parts.append(_same_sources(one, other))
    ones, at = np.unique(np.concatenate([part.ones for part in parts]), return_index=True)
    others = np.concatenate([part.others for part in parts])[at]
    named = zip(ones[:EXAMPLES].tolist(), others[:EXAMPLES].tolist(), strict=True)
    return Shared(len(ones), tuple((_name(one, first), _name(other, second)) for first, second in named))


def _same_bytes(one: ShardSet, other: ShardSet) -> _Pairs:
    """Pair the images whose bytes are the same; only those of equal size and CRC32 are read."""
    known = np.concatenate([np.empty(0, np.uint64), *(_size_and_crc(one, shard) for shard in one.shards)])
    distinct, numbers, keys = np.unique(known), [], []
    for start, shard in _started(other, one):
        found = _size_and_crc(other, shard)
        candidates = np.flatnonzero(_among(found, distinct))
        numbers.append(start + candidates)
        keys.append(found[candidates])
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *keys]))
    ones = np.flatnonzero(_among(known, wanted))
    others = np.concatenate([np.empty(0, np.int64), *numbers])
    return _paired(_hashed(one, ones, _image, _sha256), _hashed(other, others, _image, _sha256))


def _same_sources(one: ShardSet, other: ShardSet) -> _Pairs:
    """Pair the images that were made of the same bytes, as the samples' descriptions say."""
    known = _hashed(one, np.arange(one.samples), _description, _source)
    halves, kept = np.unique(known["digest"][:, 0]), [np.empty(0, HASHED)]
    for start, shard in _started(other, one):
        found = _hashed(other, np.arange(start, start + shard.samples), _description, _source)
        kept.append(found[_among(found["digest"][:, 0], halves)])
    return _paired(known, np.concatenate(kept))


def _paired(ones: Hashed, others: Hashed) -> _Pairs:
    """Pair what has the same digest; ``others`` are ascending by their numbers."""
    both = np.concatenate([ones["digest"], others["digest"]])
    _, group = np.unique(both, axis=0, return_inverse=True)
    first = np.full(len(both), -1, np.int64)
    first[group[len(ones) :][::-1]] = others["number"][::-1]
    partners = first[group[: len(ones)]]
    return _Pairs(ones["number"][partners >= 0], partners[partners >= 0])


def _among(values: Uint64s, distinct: Uint64s) -> npt.NDArray[np.bool_]:
    """Say which values are among the ``distinct`` ones, which ascend."""
    if not len(distinct):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(distinct, values), len(distinct) - 1)
    return np.asarray(distinct[places] == values, np.bool_)


def _size_and_crc(shards: ShardSet, shard: ShardRecord) -> Uint64s:
    """Return what equal images of a shard have in common, one number each."""
    if not shard.samples:
        return np.empty(0, np.uint64)
    images = read_table(shards.root, shard)[:, _image(shard)]
    return images["size"].astype(np.uint64) << np.uint64(32) | images["crc32"].astype(np.uint64)


def _hashed(
    shards: ShardSet, numbers: Int64s, column: Callable[[ShardRecord], int], digest: Callable[[bytes], bytes]
) -> Hashed:
    """Return ``HASHED`` [n]: ``digest`` of the member in ``column`` of the samples with these ascending numbers."""
    hashed, done = np.empty(len(numbers), HASHED), 0
    hashed["number"] = numbers
    for start, shard in _started(shards):
        rows = numbers[done : done + int(np.searchsorted(numbers[done:], start + shard.samples))] - start
        if len(rows):
            members = read_table(shards.root, shard)[rows, column(shard)].tolist()
            halves = b"".join(digest(payload)[:16] for payload in _payloads(shards, shard, members))
            hashed["digest"][done : done + len(rows)] = np.frombuffer(halves, "<u8").reshape(-1, 2)
            done += len(rows)
    return hashed


def _payloads(shards: ShardSet, shard: ShardRecord, members: Iterable[Member]) -> Iterator[bytes]:
    """Yield the bytes of members of a shard, checked by their CRC32."""
    where, tar = shown(shard.name), place(shards.root, shard.name)
    try:
        if not is_remote(shards.root, shard):
            with open(tar, "rb") as file:
                for member in members:
                    yield read_payload(file.fileno(), member, where, shards.root)
            return
        for offset, size, crc32 in members:
            payload = read_range(tar, offset, size)
            wrong = damage(payload, size, crc32)
            if wrong:
                raise DataError(f"{where} is damaged: {wrong} (offset {offset})", fix=how_to_verify(shards.root))
            yield payload
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}", fix=REBUILD) from None


def _started(shards: ShardSet, beside: ShardSet | None = None) -> Iterator[tuple[int, ShardRecord]]:
    """Yield the shards that hold samples, each with the number of its first; show it where two sets are large."""
    starts = np.cumsum([0, *(shard.samples for shard in shards.shards)]).tolist()
    pairs = iter([(start, shard) for start, shard in zip(starts, shards.shards, strict=False) if shard.samples])
    if beside is None or shards.samples + beside.samples < LARGE:
        return pairs
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    title = f"comparing {beside.split} with {shards.split}"
    return shown_progress(pairs, lambda pair: pair[1].samples, total=shards.samples, title=title, console=console)


def _image(shard: ShardRecord) -> int:
    return next(column for column, name in enumerate(shard.members) if name not in ("cls", "json"))


def _description(shard: ShardRecord) -> int:
    return shard.members.index("json")


def _sha256(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def _source(description: bytes) -> bytes:
    return bytes.fromhex(json.loads(description)["sha256"])


def _says_sources(shards: ShardSet) -> bool:
    """Say whether a set, on a disk, says what its images were made of."""
    filled = [shard for shard in shards.shards if shard.samples]
    return all("json" in shard.members and not is_remote(shards.root, shard) for shard in filled)


def _alters(shards: ShardSet) -> bool:
    """Say whether an image of a set is not, byte for byte, what it was made of."""
    try:
        records = (json.loads(read_file(place(shards.root, sidecar(shard.name, "json")))) for shard in shards.shards)
        return any(set(record["notes"]) - {"passed"} for record in records)
    except (OSError, ValueError, KeyError):  # what cannot be known is looked at
        return True


def _name(shards: ShardSet, number: int) -> str:
    """Name a sample by its shard and what the tar calls it."""
    for start, shard in _started(shards):
        if number < start + shard.samples:
            offset = int(read_table(shards.root, shard)[number - start, _image(shard)]["offset"]) - _BLOCK
            tar = place(shards.root, shard.name)
            if is_remote(shards.root, shard):
                header = read_range(tar, offset, _NAME)
            else:
                with open(tar, "rb") as file:
                    header = os.pread(file.fileno(), _NAME, offset)
            name = header.partition(b"\0")[0].decode("utf-8", "replace")
            return f"{shown(shard.name)}: {printable(name)}"
    raise AssertionError(number)
