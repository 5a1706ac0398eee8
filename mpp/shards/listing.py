"""What was listed: every image of every source, once, in tables on disk that any process can open.

A folder with ``listing.json`` (the sources, the classes, counts, hash) and for each split ``SPLIT.arrow`` (place,
source, label, corpus) and ``SPLIT.sizes`` (int64). Writing and reading need memory for a few thousand images.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp.config import dump
from mpp.errors import ConfigError, DataError
from mpp.shards.layout import Int64s
from mpp.shards.shardset import RECORDS
from mpp.sources.corpora import open_corpus
from mpp.sources.entries import Corpus, Entry, Label

ROWS = 4096  # of a record batch
FOLDER = f"{RECORDS}/listing"
SUMMARY = "listing.json"
OWN_FOLDERS = ("failed", "layout", "listing", "lock", "spool", "tmp")  # in RECORDS, where each split has one too


class Row(NamedTuple):
    """An image of the listing as a writer needs it; ``label`` is the number of its class, or None."""

    place: bytes
    source: str
    size: int
    label: int | None
    corpus: int


class _SplitWriter:
    """Appends the images of one split to its two files."""

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow

        fields = (("place", pyarrow.binary()), ("source", pyarrow.string()))
        self.schema = pyarrow.schema([*fields, ("label", pyarrow.int32()), ("corpus", pyarrow.uint16())])
        self.count, self.digest, self.rows = 0, hashlib.sha256(), list[tuple[bytes, str, int, int]]()
        self.fresh_sizes: list[int] = []
        self.files = ExitStack()
        self.table = self.files.enter_context(pyarrow.ipc.new_file(str(folder / f"{split}.arrow"), self.schema))
        self.sizes = self.files.enter_context((folder / f"{split}.sizes").open("wb"))

    def add(self, entry: Entry, label: int, corpus: int) -> None:
        """Add an image, whose label has got the number ``label``, -1 for none."""
        self.rows.append((entry.place, entry.source, label, corpus))
        self.fresh_sizes.append(entry.size)
        self.count += 1
        if len(self.rows) == ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        import pyarrow

        columns = list(zip(*self.rows, strict=True)) or [()] * 4
        arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)]
        self.table.write_batch(pyarrow.record_batch(arrays, schema=self.schema))
        sizes = np.array(self.fresh_sizes, "<i8").tobytes()
        self.sizes.write(sizes)
        self.digest.update(json.dumps(columns[1:]).encode() + sizes)
        self.rows, self.fresh_sizes = [], []

    def close(self) -> None:
        """Write the rest and close the files."""
        if self.rows:
            self.flush()
        self.files.close()


@dataclass
class _Labels:
    """Numbers the labels as they come; in the end it knows whether there are labels, and the classes."""

    codes: dict[str | int, int] = field(default_factory=dict)
    labelled: int = 0
    without: str | None = None

    def code(self, entry: Entry, label: Label) -> int:
        """Return the number of a label in order of appearance, -1 for none."""
        if label is None:
            self.without = self.without or entry.source
            return -1
        self.labelled += 1
        return self.codes.setdefault(label, len(self.codes))

    def classes(self, known: tuple[str, ...] | None, needs_two: bool) -> tuple[tuple[str, ...] | None, str]:
        """Return the names of the classes, or None where the images carry no labels; and in words why not."""
        if not self.labelled:
            return None, ""
        if self.without is not None:
            return (
                None,
                f" ({self.labelled:,} images have one, but {self.without} has none: labels=... makes that an error)",
            )
        if known is not None and all(code in known for code in self.codes):
            return known, ""
        if all(isinstance(code, int) for code in self.codes):
            most = max(int(code) for code in self.codes)
            if most > 1000 + 10 * len(self.codes):
                what = f"labels go up to {most}, but there are {len(self.codes)} different ones"
                raise DataError(f"{what}: these are no numbers of classes", fix="labels=none, or a column of names")
            return tuple(str(number) for number in range(most + 1)), ""
        if not all(isinstance(code, str) for code in self.codes):
            raise ConfigError(
                "some labels are names and some are numbers", fix="labels=none, or name the classes alike"
            )
        if needs_two and len(self.codes) < 2:
            return None, f" (only one class, {next(iter(self.codes))})"
        return tuple(sorted(map(str, self.codes), key=lambda name: name.encode("utf-8", "surrogateescape"))), ""

    def numbers(self, classes: tuple[str, ...]) -> list[int]:
        """Return for each number that was given out the number of its class."""
        index = {name: number for number, name in enumerate(classes)}
        return [index[str(label)] for label in self.codes]


Keep = Callable[[int, str, int], bool]  # (corpus, split, number within both) -> is it taken


def write_listing(folder: Path, corpora: Sequence[Corpus], *, auto_labels: bool, keep: Keep | None = None) -> "Listing":
    """List all images of ``corpora`` into ``folder`` and open the result.

    ``auto_labels`` says that nobody asked for labels: one class alone is none then. ``keep`` chooses among the
    images. Raises ``ConfigError`` or ``DataError`` for sources that cannot be listed or labels that do not fit.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # places may hold URLs with secrets
    writers: dict[str, _SplitWriter] = {}
    labels, counts = _Labels(), dict[str, list[int]]()
    try:
        for number, corpus in enumerate(corpora):
            names = corpus.classes()
            for entry in corpus.entries():
                seen = counts.setdefault(entry.split, [0] * len(corpora))
                seen[number] += 1
                if keep is not None and not keep(number, entry.split, seen[number] - 1):
                    continue
                if entry.split not in writers:
                    _check_split(entry)
                    writers[entry.split] = _SplitWriter(folder, entry.split)
                label = labels.code(entry, _named(entry, names))
                writers[entry.split].add(entry, label, number)
    finally:
        for writer in writers.values():
            writer.close()
    known = corpora[0].classes() if len(corpora) == 1 else None
    classes, why = labels.classes(known, auto_labels)
    splits = {split: writers[split].count for split in sorted(writers)}
    hashes = [[split, count, writers[split].digest.hexdigest()] for split, count in splits.items()]
    numbers = None if classes is None else labels.numbers(classes)
    summary = {
        "splits": splits,
        "found": counts,
        "classes": classes,
        "numbers": numbers,
        "hash": hashlib.sha256(json.dumps([hashes, classes, numbers]).encode()).hexdigest(),
        "decisions": _decisions(corpora, splits, classes, why),
        "corpora": [dump(corpus) for corpus in corpora],
    }
    (folder / SUMMARY).write_text(json.dumps(summary))
    return Listing(folder)


def _check_split(entry: Entry) -> None:
    """Raise ``DataError`` for a split that cannot be a folder beside our own."""
    if entry.split in OWN_FOLDERS or not re.fullmatch(r"[A-Za-z0-9][\w-]*", entry.split, re.ASCII):
        raise DataError(
            f"{entry.source}: the split cannot be called {entry.split!r}", fix="train, validation, test, ..."
        )


def _named(entry: Entry, names: tuple[str, ...] | None) -> Label:
    """Return the label by name where the corpus knows the names of its numbers."""
    if not isinstance(entry.label, int) or names is None:
        return entry.label
    if not 0 <= entry.label < len(names):
        raise DataError(f"{entry.source}: label {entry.label}, there are {len(names)} classes", fix="labels=none")
    return names[entry.label]


def _decisions(corpora: Sequence[Corpus], splits: Mapping[str, int], classes: Sequence[str] | None, why: str) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    sources = "; ".join(corpus.describe() for corpus in corpora)
    if classes is None:
        return f"{sources}: {counts}; no labels{why}"
    return (
        f"{sources}: {counts}; labels: {len(classes)} classes ({', '.join(classes[:3])}{', ...' * (len(classes) > 3)})"
    )


@dataclass(frozen=True)
class Listing:
    """The listing in ``folder``, opened by whichever process; its corpora are opened as they are read from."""

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return what ``listing.json`` says."""
        summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text())
        return summary

    @cached_property
    def corpora(self) -> list[Corpus]:
        """Return the sources."""
        return [open_corpus(tree) for tree in self.summary["corpora"]]

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of images by split, in the order of their names."""
        splits: dict[str, int] = self.summary["splits"]
        return splits

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Return the names of the classes, None where the images carry no labels."""
        return None if self.summary["classes"] is None else tuple(self.summary["classes"])

    def sizes(self, split: str) -> Int64s:
        """Return the bytes of each image of a split, ``UNKNOWN`` where they are, mapped from the disk."""
        if os.path.getsize(self.folder / f"{split}.sizes") == 0:
            return np.zeros(0, np.int64)
        return np.memmap(self.folder / f"{split}.sizes", "<i8", "r")

    def rows(self, split: str, items: Int64s) -> list[Row]:
        """Return the rows of ``items``, in that order."""
        rows: list[Row | None] = [None] * len(items)
        numbers, sizes = self.summary["numbers"], self.sizes(split)[items].tolist()
        batches = items // ROWS
        for batch in np.unique(batches).tolist():
            at = np.flatnonzero(batches == batch)
            table = self._batch(split, batch).take(items[at] % ROWS)
            columns = [column.to_numpy(zero_copy_only=False).tolist() for column in table.columns]
            for position, place, source, label, corpus in zip(at.tolist(), *columns, strict=True):
                known = None if numbers is None else numbers[label]
                rows[position] = Row(place, source, sizes[position], known, corpus)
        return [row for row in rows if row is not None]

    def read(self, split: str, row: Row) -> bytes:
        """Return the bytes of an image of ``split``; raise ``OSError`` where it cannot be read."""
        return self.corpora[row.corpus].read(split, row.place)

    def _batch(self, split: str, number: int) -> Any:
        return self._tables[split].get_batch(number)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        import pyarrow

        files = {split: pyarrow.memory_map(str(self.folder / f"{split}.arrow")) for split in self.splits}
        return {split: pyarrow.ipc.open_file(file) for split, file in files.items()}


def open_listing(work: Path) -> Listing:
    """Return the listing kept in the folder ``work``; a process opens it once."""
    return _open(work, os.stat(work / FOLDER / SUMMARY).st_mtime_ns)


@lru_cache(maxsize=1)
def _open(work: Path, changed: int) -> Listing:
    return Listing(work / FOLDER)
