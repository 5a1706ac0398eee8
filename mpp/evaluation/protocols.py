"""A labelled dataset by its name: which rows are train and test, what labels them, and whether it is what was meant."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.shards.hashing import shuffled
from mpp.sources.files import printable
from mpp.sources.hub import load_splits
from mpp.sources.rows import one_column
from mpp.sources.slices import Range, Slices, is_text
from mpp.sources.tables import Dataset, check_images, column_of, image_columns

TRAIN, TEST = "train", "test"
SHOWN = 5  # classes that a message names


@config
class LabelledData:
    """A labelled dataset as ``datasets`` loads it, and what of it is trained and tested on."""

    source: str = Field(description="OWNER/NAME on the Hub, or a local copy: a folder, or one parquet file")
    subset: str | None = Field(None, description="configuration of the dataset, where it has several")
    revision: str | None = Field(None, description="commit, tag or branch on the Hub; null: the latest")
    train: str = Field(TRAIN, description="rows to train on, as `datasets` writes slices: train[:90%]+validation")
    test: str = Field(TEST, description="rows to test on, none of them in train; the same notation")
    image: str | None = Field(None, description="column of the images; a.b is a field of a column; null: the only one")
    label: str = Field("label", description="column of the labels: numbers of classes, or their names")
    bins: tuple[float, ...] = Field(
        (),
        description="ascending edges that make classes of a number: below the first, ...; integers below 0 are none",
    )
    classes: int = Field(gt=1, description="number of classes; data that contradict it are refused")
    limit: int | None = Field(None, gt=0, description="rows drawn from train, the same ones for all; null: all")
    max_refused: float = Field(0.001, ge=0, le=1, description="share of unreadable images that is still accepted")


def open_labelled(data: LabelledData) -> Slices:
    """Load ``data`` and return its rows for train and test after counting every label.

    Raises ``ConfigError`` for columns and slices that are not there or overlap, ``DataError`` for a source that cannot
    be read, for labels that are missing or no classes, for another number of classes and for a class without rows.
    """
    _check_bins(data)
    loaded = load_splits(data.source, subset=data.subset, revision=data.revision)
    rows = {
        split: _ranges(data, split, {name: len(table) for name, table in loaded.items()}) for split in (TRAIN, TEST)
    }
    _check_apart(data, rows)
    used = {own: loaded[own] for ranges in rows.values() for own, _, _ in ranges}
    first = next(iter(used.values()))
    image = _image_column(data, first)
    for own, table in used.items():
        _check_label(data, own, table)
    dataset = Dataset(
        root=data.source,
        tables={own: tuple(cached["filename"] for cached in table.cache_files) for own, table in used.items()},
        image=image,
        label=data.label,
    )
    slices = Slices(dataset=dataset, rows=rows, bins=data.bins, names=_names(data, dataset, rows, first))
    for split in (TRAIN, TEST):
        _check_complete(data, slices, split)
    return _drawn(data, slices)


def _check_bins(data: LabelledData) -> None:
    if not data.bins:
        return
    if list(data.bins) != sorted(set(data.bins)):
        raise ConfigError(f"data.bins: {list(data.bins)} do not ascend", fix="data.bins=[A,B,...] in ascending order")
    if len(data.bins) + 1 != data.classes:
        what = f"data.bins: {len(data.bins)} edges make {len(data.bins) + 1} classes, data.classes is {data.classes}"
        raise ConfigError(what, fix=f"data.classes={len(data.bins) + 1}")


def _ranges(data: LabelledData, split: str, sizes: Mapping[str, int]) -> tuple[Range, ...]:
    """Return the ranges of rows that ``data.train`` or ``data.test`` stands for."""
    import datasets

    spec = getattr(data, split)
    known = ", ".join(f"{name} ({size:,} rows)" for name, size in sizes.items())
    named = [part.partition("[")[0].strip() for part in spec.split("+")]
    strangers = [name for name in named if name not in sizes]
    if strangers:
        near = difflib.get_close_matches(strangers[0], sizes, n=1)
        only = next(iter(sizes))
        slice_ = f"{only}[:80%]" if split == TRAIN else f"{only}[80%:]"
        fix = f"data.{split}={near[0]}" if near else f"data.{split}='{slice_}', or another of these"
        raise ConfigError(f"{data.source}: no split {strangers[0]!r}, there are {known}", fix=fix)
    beyond = [(name, end) for part in spec.split("+") for name, end in _ends(part) if end > sizes[name]]
    if beyond:  # `datasets` would take what there is
        name, end = beyond[0]
        what = f"data.{split}={spec}: {name} has {sizes[name]:,} rows, no {end:,}"
        raise ConfigError(f"{data.source}: {what}", fix=f"data.{split}=..., within {known}")
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(dict(sizes))
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        what = f"data.{split}={spec}: no slice of {known} ({reason})"
        raise ConfigError(what, fix="for instance train[:800]+validation[:200] or train[10%:]") from None
    ranges = tuple(
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to) for part in parts
    )
    if not sum(end - first for _, first, end in ranges):
        raise ConfigError(f"data.{split}={spec}: no rows of {known}", fix=f"data.{split}=SPLIT")
    return ranges


def _ends(part: str) -> list[tuple[str, int]]:
    """Return the split of one slice with each number of rows that it names."""
    name, _, slice_ = part.strip().partition("[")
    return [(name, int(number)) for number in re.findall(r"(?<![-\d])\d+(?![\d%])", slice_)]


def _check_apart(data: LabelledData, rows: Mapping[str, Sequence[Range]]) -> None:
    """Raise ``ConfigError`` where rows are trained and tested on, or taken twice."""
    taken = [(split, *part) for split in (TRAIN, TEST) for part in rows[split]]
    for (split, own, first, end), (again, other, begin, stop) in combinations(taken, 2):
        shared = min(end, stop) - max(first, begin)
        if own == other and shared > 0:
            one, two = (f"data.{name}={getattr(data, name)}" for name in (split, again))
            where = f"twice in {one}" if split == again else f"in {one} and in {two}"
            raise ConfigError(f"{data.source}: {shared:,} rows of {own} are {where}", fix="slices that share no row")


def _image_column(data: LabelledData, table: Any) -> str:
    names = list(table.features)
    if data.image is not None and "." in data.image and data.image not in names:
        _check_field(data.source, table, data.image, "data.image")
        column = data.image
    else:
        found = one_column(names, (), data.image, data.source, "data.image")
        several = [found] if found else image_columns(table.features)
        if len(several) != 1:
            what = f"{data.source}: {len(several)} image columns among {', '.join(map(printable, names))}, expected 1"
            raise ConfigError(what, fix="data.image=COLUMN")
        column = several[0]
    check_images(table, column)
    return column


def _check_field(source: str, table: Any, name: str, key: str) -> None:
    """Raise ``ConfigError`` with the nearest name where the column, or the field a.b, is not there."""
    import pyarrow

    try:
        column_of(table.data, name)
    except (KeyError, pyarrow.ArrowException):
        names = [printable(column) for column in table.features]
        outer = name.partition(".")[0]
        names += [f"{outer}.{field}" for field in getattr(table.features.get(outer), "keys", list)()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        what = f"{source}: no column {name!r}, there are {', '.join(names)}"
        raise ConfigError(what, fix=f"{key}={near[0] if near else 'COLUMN'}") from None


def _check_label(data: LabelledData, own: str, table: Any) -> None:
    """Raise where a split has no such column of labels, or one that holds something else."""
    import pyarrow

    _check_field(f"{data.source}, {own}", table, data.label, "data.label")
    kind = column_of(table.data, data.label).type
    whole, number = pyarrow.types.is_integer(kind), pyarrow.types.is_floating(kind)
    if number and not data.bins:
        raise DataError(
            f"{data.source}: {data.label} holds {kind}, no classes", fix="data.bins=[...], or another column"
        )
    if not (whole or number or (is_text(kind) and not data.bins)):
        fix = "data.label=COLUMN" if not is_text(kind) else "no data.bins, which are for numbers"
        raise DataError(f"{data.source}: {data.label} holds {kind}, expected numbers or names", fix=fix)


def _names(data: LabelledData, dataset: Dataset, rows: Mapping[str, Sequence[Range]], table: Any) -> tuple[str, ...]:
    """Return the names of the classes; raise ``DataError`` where their number is another than was said."""
    import pyarrow.compute

    feature = table.features.get(data.label)
    named = getattr(feature, "names", None) if not data.bins else None
    where = f"the type of its column {data.label!r}"
    if named is None and is_text(column_of(table.data, data.label).type):
        parts = [dataset.column(own, data.label).slice(first, end - first) for own, first, end in rows[TRAIN]]
        found = {name for part in parts for name in pyarrow.compute.unique(part).to_pylist() if name is not None}
        named, where = sorted(found), f"the labels of {data.train}"
    if named is None:
        return tuple(map(str, range(data.classes)))
    if named and len(named) != data.classes:
        what = f"{data.source}: {len(named)} classes by {where}, data.classes is {data.classes}"
        raise DataError(what, fix=f"data.classes={len(named)}, or another data.label")
    return tuple(map(printable, named))


def _check_complete(data: LabelledData, slices: Slices, split: str) -> None:
    """Raise ``DataError`` where a class has no row in ``split``, before any are drawn."""
    absent = _absent(slices, split)
    if absent:
        shown = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        spec = getattr(data, split)
        what = f"{data.source}: {len(absent)} of {data.classes} classes have no image in data.{split}={spec}: {shown}"
        raise DataError(what, fix=f"complete the data, another data.{split}, or data.classes= if there are fewer")


def _absent(slices: Slices, split: str) -> list[str]:
    counts = np.bincount(slices.labels(split), minlength=len(slices.names))
    return [slices.names[number] for number in np.flatnonzero(counts == 0)]


def _drawn(data: LabelledData, slices: Slices) -> Slices:
    """Return ``slices`` with ``data.limit`` of the rows of train, drawn at random whatever their classes are."""
    every = [(own, row) for own, first, end in slices.rows[TRAIN] for row in range(first, end)]
    if data.limit is None or data.limit == len(every):
        return slices
    if data.limit > len(every):
        what = f"data.limit={data.limit}: data.train={data.train} has {len(every)} rows"
        raise ConfigError(f"{data.source}: {what}", fix=f"data.limit={len(every)}")
    chosen = np.sort(shuffled(np.arange(data.limit, dtype=np.int64), len(every), 0))
    rows = tuple((own, row, row + 1) for own, row in (every[number] for number in chosen.tolist()))
    drawn = replace(slices, rows={**slices.rows, TRAIN: rows})
    if absent := _absent(drawn, TRAIN):
        print(
            f"{data.limit} of {len(every)} rows are drawn: {len(absent)} of {data.classes} classes are not among them"
        )
    return drawn
