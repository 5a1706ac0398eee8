"""Labelled rows of a dataset: some rows of its splits for train, others for test, each with the number of its class."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mpp.config import config
from mpp.errors import DataError
from mpp.sources.entries import Entry
from mpp.sources.files import printable
from mpp.sources.tables import Dataset, sizes_and_paths

Ints = npt.NDArray[np.int64]
Range = tuple[str, int, int]  # split of the source, first row, end


@config
class Slices:
    """Rows of ``dataset``, taken as splits of our own."""

    kind: Literal["slices"] = "slices"
    dataset: Dataset = Field(description="all splits of the source")
    rows: dict[str, tuple[Range, ...]] = Field(description="by split: (split of the source, first row, end)")
    bins: tuple[float, ...] = Field((), description="ascending edges; a label is the number of those at or below it")
    names: tuple[str, ...] = Field(description="names of the classes; of labels that are names, these")

    @property
    def root(self) -> str:
        """Return the path or the name of the dataset."""
        return self.dataset.root

    def entries(self) -> Iterator[Entry]:
        """Yield every row; ``place`` is its split of the source and its number there."""
        for split, ranges in self.rows.items():
            labels = iter(self.labels(split).tolist())
            for own, first, end in ranges:
                row = first
                for chunk in self.dataset.column(own, self.dataset.image).slice(first, end - first).chunks:
                    for size, path in sizes_and_paths(chunk):
                        shown = f"{own}[{row}]" + (f" {printable(path)}" if path else "")
                        yield Entry(split, b"%s\0%d" % (own.encode(), row), shown, size, self.names[next(labels)])
                        row += 1

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.names

    def describe(self) -> str:
        """Name the dataset and its columns."""
        return f"dataset {self.root}, image column {self.dataset.image!r}, label column {self.dataset.label!r}"

    def read(self, split: str, place: bytes) -> bytes:
        """Return one row's bytes; raise ``OSError`` where a row only names a file that cannot be read."""
        own, _, row = place.partition(b"\0")
        return self.dataset.read(own.decode(), row)

    def labels(self, split: str) -> Ints:
        """Return the class of every row of ``split``, int64 [N].

        Raises ``DataError`` where rows have no label, or one that is no class.
        """
        parts = [self._numbers(own)[first:end] for own, first, end in self.rows[split]]
        numbers = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        without = int((numbers == MISSING).sum())
        if without:
            many = f"none of its {len(numbers):,}" if without == len(numbers) else f"{without:,} of {len(numbers):,}"
            has = "has" if without == len(numbers) else "have no"
            end = "a label" if without == len(numbers) else "label"
            what = f"{self.root}: {split}: {many} images {has} {end} in {self.dataset.label!r} (missing or negative)"
            raise DataError(what, fix=f"data.{split}=SPLIT, one that carries labels")
        wrong = np.flatnonzero(numbers >= len(self.names))
        if len(wrong):
            own, row = self._row(split, int(wrong[0]))
            value = self.dataset.column(own, self.dataset.label or "")[row].as_py()
            what = f"{self.root}: {own}[{row}] has the label {value!r} in {self.dataset.label!r}, {len(wrong):,} are so"
            known = f"{self.names[0]} to {self.names[-1]}"
            raise DataError(f"{what}; there are {len(self.names)} classes, {known}", fix="mend it, or data.classes=")
        return numbers

    def _row(self, split: str, number: int) -> tuple[str, int]:
        for own, first, end in self.rows[split]:
            if number < end - first:
                return own, first + number
            number -= end - first
        raise AssertionError(f"{split} has no row {number}")

    def _numbers(self, own: str) -> Ints:
        """Return the class of all rows of a split of the source: MISSING where there is none, beyond all if unknown."""
        if own not in self._known:
            self._known[own] = numbers_of(self.dataset.column(own, self.dataset.label or ""), self.bins, self.names)
        return self._known[own]

    @cached_property
    def _known(self) -> dict[str, Ints]:
        return {}


MISSING = -1


def numbers_of(values: Any, bins: tuple[float, ...], names: tuple[str, ...]) -> Ints:
    """Return the classes [N] of a column of numbers or names: MISSING, or ``len(names)`` for an unknown name."""
    import pyarrow
    import pyarrow.compute

    missing = pyarrow.compute.is_null(values, nan_is_null=True).to_numpy()
    if is_text(values.type):
        known = pyarrow.compute.index_in(values, value_set=pyarrow.array(names, values.type))
        numbers = pyarrow.compute.fill_null(known, len(names)).to_numpy().astype(np.int64)
    elif bins:
        plain = _plain(values)
        numbers = np.searchsorted(bins, np.nan_to_num(plain), side="right").astype(np.int64)
        if pyarrow.types.is_integer(values.type):  # as without bins: -1 is what hidden labels are written as
            missing = missing | (plain < 0)
    else:
        numbers = np.maximum(_plain(values).astype(np.int64), MISSING)
    return np.where(missing, MISSING, numbers)


def _plain(values: Any) -> npt.NDArray[Any]:
    import pyarrow.compute

    numbers: npt.NDArray[Any] = pyarrow.compute.fill_null(values, 0).to_numpy()
    return numbers


def is_text(kind: Any) -> bool:
    """Say whether a column of this Arrow type holds names."""
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
