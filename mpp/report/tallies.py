"""What the records of a shard set say in sum: outcomes by split, and why images were refused."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mpp.errors import DataError
from mpp.shards.shardset import RECORDS

EXAMPLES = 3  # refused images that are named, a reason
AGAIN = "run the mpp-shard command that wrote the set again"


@dataclass
class Tally:
    """The sums over the commit records of one split; ``labels`` is None where a record does not count them."""

    listed: int = 0
    refused: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] | None = field(default_factory=Counter)


class Bar(NamedTuple):
    """A named number of images; ``share`` of the whole and ``width`` of the longest bar, both 0 to 1."""

    name: str
    images: int
    share: float
    width: float


class Reason(NamedTuple):
    """Why images were refused: how many, and the first of them as (source, detail)."""

    bar: Bar
    examples: tuple[tuple[str, str], ...]


def read_tallies(root: Path, taken: Mapping[str, int]) -> dict[str, Tally]:
    """Sum the commit records by split, also of shards of which every image was refused.

    Raises ``DataError`` for a record that cannot be read, and where they do not add up to the images ``taken``.
    """
    tallies: dict[str, Tally] = {}
    for path in sorted((root / RECORDS).glob("*/*.json")):
        split = path.parent.name
        if path.name.startswith(f"{split}-"):
            try:
                _add(tallies.setdefault(split, Tally()), path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: cannot be read, {type(error).__name__}: {error}", fix=AGAIN) from None
    for split, images in taken.items():
        tally = tallies.get(split, Tally())
        if tally.listed - tally.refused != images:
            found = f"{tally.listed - tally.refused} of {images} images"
            raise DataError(f"{root / RECORDS / split}: the records are of {found}", fix=AGAIN)
    return tallies


def read_reasons(root: Path) -> list[Reason]:
    """Return the refusals by reason, the most frequent first; ``DataError`` where their table cannot be read."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    path = root / RECORDS / "refused.parquet"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["source", "reason", "detail"]):
                for found in batch.column("reason").value_counts().to_pylist():
                    counts[found["values"]] += found["counts"]
                    named = examples.setdefault(found["values"], [])
                    if len(named) < EXAMPLES:
                        rows = batch.filter(pyarrow.compute.equal(batch.column("reason"), found["values"]))
                        first = rows.slice(0, EXAMPLES - len(named)).to_pylist()
                        named += [(row["source"], row["detail"]) for row in first]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: {error}", fix=AGAIN) from None
    return [Reason(bar, tuple(examples[bar.name])) for bar in bars(counts)]


def bars(counts: Mapping[str, int], whole: int | None = None) -> tuple[Bar, ...]:
    """Return named counts as bars, the longest first; shares are of ``whole``, by default of their sum."""
    whole, most = whole or sum(counts.values()), max(counts.values(), default=1)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Bar(name, count, count / whole, count / most) for name, count in ordered)


def _add(tally: Tally, path: Path) -> None:
    record = json.loads(path.read_bytes())
    tally.listed += record["listed"]
    tally.refused += record["refused"]
    tally.notes.update(record["notes"])
    tally.formats.update(record.get("formats", {}))
    tally.modes.update(record.get("modes", {}))
    if record["samples"] and "labels" not in record:
        tally.labels = None
    if tally.labels is not None:
        tally.labels.update({int(label): count for label, count in record.get("labels", {}).items()})
