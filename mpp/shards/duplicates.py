"""Exact duplicates: which listed images have the very bytes of one that stands before them.

The order is that of the whole set: splits by name, train last, the images of a split by their number in the listing.
The first of equal images stays, so a copy of a test or validation image is dropped from train, never the other way
round.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from mpp.shards.listing import open_listing
from mpp.shards.progress import shown
from mpp.shards.shardset import RECORDS
from mpp.sources.entries import UNKNOWN

TABLE = f"{RECORDS}/duplicates.parquet"
ITEMS_PER_TASK = 4_096
HASHED = np.dtype([("digest", "<u8", 2), ("number", "<i8")])  # half a sha256, and a number in the whole set

Int64s = npt.NDArray[np.int64]
Hashed = npt.NDArray[np.void]


class Copies(NamedTuple):
    """The copies in one split, ascending, and their originals: ``splits[original_splits[k]]``, ``originals[k]``."""

    splits: tuple[str, ...]
    items: Int64s
    original_splits: Int64s
    originals: Int64s

    def original(self, item: int) -> tuple[str, int] | None:
        """Return split and listing number of the image that ``item`` is a copy of, None where it is none."""
        place = int(np.searchsorted(self.items, item))
        if place == len(self.items) or self.items[place] != item:
            return None
        return self.splits[self.original_splits[place]], int(self.originals[place])


class HashTask(NamedTuple):
    """Images to hash, by their numbers in one split of the listing that is in the folder ``out``."""

    out: Path
    split: str
    items: Int64s


class Digests(NamedTuple):
    """The images of a task that could be read: the first half of the sha256 [N, 2] and the bytes [N] of each.

    ``asked`` is the number of all images of the task.
    """

    split: str
    asked: int
    items: Int64s
    digests: npt.NDArray[np.uint64]
    sizes: Int64s


Run = Callable[[Callable[[HashTask], Digests], Sequence[HashTask]], Iterator[Digests]]


def find_duplicates(out: Path, sizes: Mapping[str, Int64s], run: Run, console: Console) -> dict[str, Copies]:
    """Return the copies of every split of the listing in ``out``; ``sizes`` are the bytes of its images, in order.

    ``run(function, tasks)`` reads and hashes the images that may have a copy. Images that cannot be read, and empty
    ones, are no duplicates. Needs memory for 8 bytes an image and about 80 for each image that is hashed.
    """
    unknown = {split: np.flatnonzero(known == UNKNOWN) for split, known in sizes.items()}
    starts = _starts(sizes)
    first, learned = _hash_all(out, unknown, starts, run, console)
    second, _ = _hash_all(out, candidates(sizes, learned), starts, run, console)
    return by_split(*equal_numbers(np.concatenate([first, second])), sizes)


def candidates(sizes: Mapping[str, Int64s], learned: Int64s) -> dict[str, Int64s]:
    """Return the numbers of the images in each split whose size is known and occurs more than once.

    ``learned``: the sizes of the images whose size in ``sizes`` is ``UNKNOWN``, as far as they could be read.
    """
    ordered = np.sort(np.concatenate([learned, *(known[known != UNKNOWN] for known in sizes.values())]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return {split: np.flatnonzero(np.isin(known, repeated)) for split, known in sizes.items()}


def _hash_all(
    out: Path, asked: Mapping[str, Int64s], starts: Mapping[str, int], run: Run, console: Console
) -> tuple[Hashed, Int64s]:
    """Return ``HASHED`` [N] of those of the images ``asked`` for that could be read, and their sizes [N]."""
    total = sum(len(items) for items in asked.values())
    hashed, sizes, end = np.zeros(total, HASHED), np.zeros(total, np.int64), 0
    tasks = [
        HashTask(out, split, items[first : first + ITEMS_PER_TASK])
        for split, items in asked.items()
        for first in range(0, len(items), ITEMS_PER_TASK)
    ]
    results = run(hash_items, tasks) if tasks else iter(())
    for read in shown(results, lambda result: result.asked, total=total, title="hashing", console=console):
        part = slice(end, end + len(read.items))
        hashed["digest"][part], hashed["number"][part] = read.digests, read.items + starts[read.split]
        sizes[part] = read.sizes
        end = part.stop
    return hashed[:end], sizes[:end]


def hash_items(task: HashTask) -> Digests:
    """Read and hash the images of ``task``."""
    listing = open_listing(task.out)
    items, digests, sizes = [], [], []
    for item, row in zip(task.items.tolist(), listing.rows(task.split, task.items), strict=True):
        try:
            image = listing.read(task.split, row)
        except (OSError, MemoryError):  # the writer will meet it again and say why
            continue
        if image:
            items.append(item)
            digests.append(hashlib.sha256(image).digest()[:16])
            sizes.append(len(image))
    halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    return Digests(task.split, len(task.items), np.array(items, np.int64), halves, np.array(sizes, np.int64))


def equal_numbers(hashed: Hashed) -> tuple[Int64s, Int64s]:
    """Return the numbers of all copies, ascending, and for each the lowest number with the same digest.

    ``hashed``: ``HASHED`` [N], in any order.
    """
    ordered = hashed[np.lexsort((hashed["number"], hashed["digest"][:, 0], hashed["digest"][:, 1]))]
    is_copy = np.zeros(len(ordered), bool)
    is_copy[1:] = (ordered["digest"][1:] == ordered["digest"][:-1]).all(axis=1)
    firsts = ordered["number"][~is_copy]
    originals = firsts[np.cumsum(~is_copy)[is_copy] - 1]
    copies = ordered["number"][is_copy]
    order = np.argsort(copies)
    return copies[order], originals[order]


def by_split(copies: Int64s, originals: Int64s, sizes: Mapping[str, Int64s]) -> dict[str, Copies]:
    """Turn numbers in the whole set, ``copies`` ascending, into splits and numbers in them."""
    starts = _starts(sizes)
    splits, firsts = tuple(starts), np.array(list(starts.values()), np.int64)
    owners = np.searchsorted(firsts, originals, side="right") - 1
    ends = [*np.searchsorted(copies, firsts).tolist(), len(copies)]
    return {
        split: Copies(
            splits, copies[begin:end] - starts[split], owners[begin:end], (originals - firsts[owners])[begin:end]
        )
        for split, begin, end in zip(splits, ends[:-1], ends[1:], strict=True)
    }


def _in_order(splits: Iterable[str]) -> list[str]:
    """Return the splits by name, but train last: what tests a model keeps its images."""
    return sorted(splits, key=lambda split: (split == "train", split))


def _starts(sizes: Mapping[str, Int64s]) -> dict[str, int]:
    """Return the number in the whole set of the first image of each split."""
    starts, start = {}, 0
    for split in _in_order(sizes):
        starts[split] = start
        start += len(sizes[split])
    return starts


def duplicates_table(found: Mapping[str, Copies]) -> bytes:
    """Return the file ``TABLE``: columns split, item, original_split, original, in the order of the set."""
    import pyarrow
    import pyarrow.parquet

    numbers, names = pyarrow.int64(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {"split": names, "item": numbers, "original_split": names, "original": numbers}
    schema = pyarrow.schema(list(types.items()))
    target = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for number, split in enumerate(_in_order(found)):
            copies = found[split]
            codes = np.full(len(copies.items), number), copies.original_splits
            owns, others = (pyarrow.DictionaryArray.from_arrays(code.astype(np.int32), copies.splits) for code in codes)
            writer.write_table(pyarrow.table([owns, copies.items, others, copies.originals], schema=schema))
    return target.getvalue()


def read_copies(out: Path, split: str) -> Copies:
    """Read the copies of one split from the ``TABLE`` in ``out``."""
    import pyarrow.parquet

    columns = ["item", "original_split", "original"]
    table = pyarrow.parquet.read_table(out / TABLE, columns=columns, filters=[("split", "=", split)])
    names = table["original_split"].unify_dictionaries().combine_chunks()
    numbers = names.indices.to_numpy().astype(np.int64)
    return Copies(tuple(names.dictionary.to_pylist()), table["item"].to_numpy(), numbers, table["original"].to_numpy())
