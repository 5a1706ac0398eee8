"""Near duplicates of a finished set, a report over all splits, printed and stored; the set stays as it is."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from mpp.disk import disk_errors
from mpp.errors import DataError
from mpp.shards.likeness import Hashes, Int64s, Likeness, bits_apart, difference_hash, find_likeness
from mpp.shards.outputs import LocalOutput
from mpp.shards.progress import shown
from mpp.shards.shardset import RECORDS, ShardSet, open_shards, place, read_members, read_payload, split_names

TABLE = f"{RECORDS}/near_duplicates.parquet"
GROUPS_SHOWN, IMAGES_SHOWN = 10, 8
ROWS = 65_536  # of the table, looked up at a time

Run = Callable[[Callable[[ShardSet], tuple[str, Hashes]], Sequence[ShardSet]], Iterator[tuple[str, Hashes]]]


class Sample(NamedTuple):
    """What people know an image by."""

    split: str
    key: str
    source: str


class Samples:
    """The samples of all splits in one order: splits by name but ``train`` last, shards and samples as stored."""

    def __init__(self, root: Path) -> None:
        """Open the set; raise ``DataError`` where it is none, or its shards are not as recorded."""
        names = sorted(split_names(root), key=lambda name: (name == "train", name))
        self.splits = [open_shards(root, name) for name in names]
        for split in self.splits:
            split.require_sources()
        self.shards = [replace(split, shards=(shard,)) for split in self.splits for shard in split.shards]  # one each
        self.starts = np.cumsum([0, *(shard.samples for shard in self.shards)], dtype=np.int64)

    def split_numbers(self) -> Int64s:
        """Return the number of each sample's split [N]."""
        return np.repeat(np.arange(len(self.splits)), [split.samples for split in self.splits])

    def look_up(self, numbers: Int64s) -> list[Sample]:
        """Return the samples with these ``numbers``, read shard by shard."""
        found: dict[int, Sample] = {}
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        for owner in np.unique(owners).tolist():
            own = numbers[owners == owner]
            records = read_payloads(self.shards[owner], "json", own - self.starts[owner])
            for number, record in zip(own.tolist(), map(json.loads, records), strict=True):
                found[number] = Sample(self.shards[owner].split, record["key"], record["source"])
        return [found[number] for number in numbers.tolist()]


class Groups(NamedTuple):
    """The images that look alike, group by group: ``numbers`` [M] in the set, ``groups`` [M], their groups from 0.

    Groups across splits come first, then the larger ones. ``across`` is how many those are, ``total`` how many all.
    """

    numbers: Int64s
    groups: Int64s
    across: int
    total: int


def report_near_duplicates(root: Path, distance: int, run: Run) -> None:
    """Hash every stored image through ``run(function, shards)``, print what looks alike, and store it as ``TABLE``.

    Hashes of near duplicates differ in at most ``distance`` bits. Raises ``DataError`` for a set that is damaged or
    not finished, ``DiskError`` where the table cannot be written. Needs memory for about 200 bytes an image.
    """
    samples = Samples(root)
    splits = samples.split_numbers()
    hashes = _hash_all(samples, run)
    found = find_likeness(hashes, splits, len(samples.splits), distance)
    groups = rank_groups(found.firsts, splits)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{root}: {len(hashes):,} images, near duplicates within {distance} of 64 bits")
    for line in (*describe_splits(samples, found), *describe_groups(samples, hashes, found, groups)):
        console.print(line)
    with disk_errors(root):
        LocalOutput(root).put(TABLE, near_duplicates_table(samples, hashes, found, groups))
    console.print(f"all of them: {root / TABLE}")


def _hash_all(samples: Samples, run: Run) -> Hashes:
    """Return the hash of every sample [N, 2]."""
    hashes = np.zeros((samples.starts[-1], 2), np.uint64)
    starts = {
        shard.shards[0].name: start for shard, start in zip(samples.shards, samples.starts.tolist(), strict=False)
    }
    results = run(hash_shard, samples.shards)
    console, total = Console(stderr=True, highlight=False), len(hashes)
    for name, part in shown(results, lambda result: len(result[1]), total=total, title="hashing", console=console):
        hashes[starts[name] : starts[name] + len(part)] = part
    return hashes


def hash_shard(shard: ShardSet) -> tuple[str, Hashes]:
    """Return the name of a set's only shard and the hashes of its images; raise ``DataError`` for damaged ones."""
    record = shard.shards[0]
    extension = next(name for name in record.members if name not in ("cls", "json"))
    hashes = np.zeros((record.samples, 2), np.uint64)
    for row, image in enumerate(read_payloads(shard, extension, np.arange(record.samples))):
        try:
            hashes[row] = difference_hash(image)
        except Exception as error:  # whatever a decoder raises
            raise _damaged(shard, row, f"{type(error).__name__}: {error}") from None
    return record.name, hashes


def read_payloads(shard: ShardSet, extension: str, rows: Int64s) -> Iterator[bytes]:
    """Yield the ``extension`` members of ``rows`` of a set's only shard; raise ``DataError`` for damaged ones."""
    record = shard.shards[0]
    members = read_members(shard, 0)[rows, record.members.index(extension)].tolist()
    with open(place(shard.root, record.name), "rb") as file:
        for row, member in zip(rows.tolist(), members, strict=True):
            yield read_payload(file.fileno(), member, f"{record.name}:{row}: the {extension} member", shard.root)


def _damaged(shard: ShardSet, row: int, why: str) -> DataError:
    where = place(shard.root, shard.shards[0].name)
    return DataError(f"{where}:{row}: {why}", fix=f"mpp verify {shard.root} full=true")


def rank_groups(firsts: Int64s, splits: Int64s) -> Groups:
    """Put the groups in order: ``firsts`` [N] as in ``Likeness``, ``splits`` [N] the number of each image's split."""
    sizes, across = np.bincount(firsts, minlength=len(firsts)), np.zeros(len(firsts), bool)
    across[firsts[splits != splits[firsts]]] = True
    leaders = np.flatnonzero(sizes > 1)
    ranks = np.zeros(len(firsts), np.int64)
    ranks[leaders[np.lexsort((-sizes[leaders], ~across[leaders]))]] = np.arange(len(leaders))
    members = np.flatnonzero(sizes[firsts] > 1)
    numbers = members[np.argsort(ranks[firsts[members]], kind="stable")]
    return Groups(numbers, ranks[firsts[numbers]], int(across.sum()), len(leaders))


def describe_splits(samples: Samples, found: Likeness) -> Iterator[str]:
    """Yield a line for every two splits: how much of the one is in the other."""
    splits = samples.split_numbers()
    for (here, ours), (there, theirs) in itertools.combinations(enumerate(samples.splits), 2):
        forth, back = found.reaches[splits == here, there].sum(), found.reaches[splits == there, here].sum()
        yield (
            f"  {forth:,} of {ours.samples:,} {ours.split} images have a near duplicate in {theirs.split} "
            f"({back:,} of {theirs.samples:,} the other way)"
        )


def describe_groups(samples: Samples, hashes: Hashes, found: Likeness, groups: Groups) -> Iterator[str]:
    """Yield the counts and the first groups with some of their images."""
    yield f"  {len(groups.numbers):,} images in {groups.total:,} groups, {groups.across:,} of them across splits"
    yield f"  {found.flat.sum():,} images are flat (blank, or a plain gradient) and not compared"
    for group in range(min(groups.total, GROUPS_SHOWN)):
        numbers = groups.numbers[slice(*np.searchsorted(groups.groups, (group, group + 1)))]
        counts = Counter(samples.splits[split].split for split in samples.split_numbers()[numbers].tolist())
        shares = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
        yield f"  group {group}: {len(numbers):,} images, {shares}"
        first = numbers[:IMAGES_SHOWN]
        distances = bits_apart(hashes[first], hashes[first[0]])
        for sample, distance in zip(samples.look_up(first), distances, strict=True):
            yield f"    {sample.split} {sample.key}  {distance:2d} bits  {sample.source}"
        if len(numbers) > len(first):
            yield f"    and {len(numbers) - len(first):,} more"


def near_duplicates_table(samples: Samples, hashes: Hashes, found: Likeness, groups: Groups) -> bytes:
    """Return the parquet file of the groups, then of the flat images, which have neither group nor distance.

    Columns: group, split, key, source, distance (bits that differ from the first image of the group).
    """
    import pyarrow
    import pyarrow.parquet

    flat = np.flatnonzero(found.flat)
    numbers = np.concatenate([groups.numbers, flat])
    ranks = np.concatenate([groups.groups, np.full(len(flat), -1)])
    distances = bits_apart(hashes[numbers], hashes[found.firsts[numbers]])
    text, number = pyarrow.string(), pyarrow.int64()
    types = {"group": number, "split": text, "key": text, "source": text, "distance": pyarrow.int8()}
    schema, target = pyarrow.schema(list(types.items())), io.BytesIO()
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for begin in range(0, len(numbers), ROWS):
            part = slice(begin, begin + ROWS)
            alone = ranks[part] < 0
            names = zip(*samples.look_up(numbers[part]), strict=True)
            columns = [ranks[part], *map(list, names), distances[part].astype(np.int8)]
            masks = [alone, None, None, None, alone]
            arrays = [pyarrow.array(*item, mask=mask) for *item, mask in zip(columns, schema.types, masks, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema))
    return target.getvalue()
