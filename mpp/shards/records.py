"""Which shards a layout asks for, which of them are done, and the counts of their images by outcome."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from rich.table import Table

from mpp.errors import DataError
from mpp.shards.layout import shard_name
from mpp.shards.outputs import File, LocalOutput, Output
from mpp.shards.shardset import MEMBER, RECORDS, ShardRecord
from mpp.shards.writer import LAYOUT, Layout, read_layout


class ShardPlace(NamedTuple):
    """A shard of the layout: its name, the split and number that it stands for, and how many images it was given."""

    name: str
    split: str
    number: int
    images: int


def open_layout(output: Output) -> Layout:
    """Return the layout of ``output``; raise ``DataError`` where there is none or it is not that of its local files."""
    place = output.place("")
    try:
        layout = read_layout(output.work)
        there = layout if isinstance(output, LocalOutput) else json.loads(output.read(LAYOUT))
    except FileNotFoundError:
        where = "" if isinstance(output, LocalOutput) else f", or work=FOLDER: its local files are not in {output.work}"
        raise DataError(f"{place}: nothing is planned here", fix=f"mpp-shard plan SOURCE {place}{where}") from None
    if there["layout_hash"] != layout["layout_hash"]:
        raise DataError(f"{place} has another layout than {output.work}", fix="name its own folder by work=")
    return layout


def shard_places(layout: Layout) -> Iterator[ShardPlace]:
    """Yield all shards in layout order."""
    for split, bounds in layout["bounds"].items():
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            yield ShardPlace(shard_name(split, number), split, number, end - first)


@dataclass
class Counts:
    """Images of the shards that are done, by outcome: taken, by what was done to them, and refused, by reason."""

    taken: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def listed(self) -> int:
        """Return the number of all of them."""
        return self.taken + self.refused.total()

    def add(self, record: dict[str, Any]) -> None:
        """Add those of one shard; an ``AssertionError`` says that an image was lost."""
        refused = Counter(reason for _, reason, _, _ in record["refusals"])
        assert record["samples"] + refused.total() == record["listed"], f"{record['name']}: images do not add up"
        self.taken += record["samples"]
        self.notes.update(record["notes"])
        self.refused.update(refused)

    def table(self) -> Table:
        """Return them as a table."""
        table = Table("", "images", box=None)
        rows = [("listed", self.listed), ("taken", self.taken)]
        rows += [(f"  {note}", count) for note, count in sorted(self.notes.items())]
        rows += [("refused", self.refused.total())]
        rows += [(f"  {reason}", count) for reason, count in sorted(self.refused.items())]
        for name, count in rows:
            table.add_row(name, f"{count:,}")
        return table


def committed(
    output: Output, layout: Layout, places: Iterable[ShardPlace], *, all_read: bool = False
) -> tuple[list[ShardRecord], Counts]:
    """Return the records of those of ``places`` that are done, in their order, and the counts of their images.

    Done is: of this layout, with all files of the recorded sizes, and with ``all_read`` without an image that could
    not be read, as happens while a disk or a server is away.
    """
    records, counts, members = [], Counts(), dict[tuple[str, ...], tuple[str, ...]]()
    for split, group in itertools.groupby(places, key=lambda place: place.split):
        sidecars, tars = output.files(f"{RECORDS}/{split}"), output.files(split)
        stems = [PurePosixPath(place.name).stem for place in group]
        stems = [stem for stem in stems if f"{stem}.json" in sidecars]
        for stem, raw in zip(stems, output.read_all(f"{RECORDS}/{split}/{stem}.json" for stem in stems), strict=True):
            try:
                record = json.loads(raw)
                if record["layout_hash"] == layout["layout_hash"] and _is_whole(record, stem, sidecars, tars):
                    if all_read and any(reason == "unreadable" for _, reason, _, _ in record["refusals"]):
                        continue
                    counts.add(record)
                    extensions = tuple(record["members"])
                    shared = {
                        "layout_hash": layout["layout_hash"],
                        "members": members.setdefault(extensions, extensions),
                    }
                    own = {name: record[name] for name in ("name", "samples", "bytes", "sha256", "refused")}
                    records.append(ShardRecord(**own, **shared))
            except (ValueError, KeyError, TypeError):
                continue
    return records, counts


def forget(output: Output, places: Iterable[ShardPlace]) -> None:
    """Remove the records of shards that are to be written again: a record says that its shard is done."""
    found: dict[str, dict[str, File]] = {}
    for place in places:
        if place.split not in found:
            found[place.split] = output.files(f"{RECORDS}/{place.split}")
        record = f"{PurePosixPath(place.name).stem}.json"
        if record in found[place.split]:
            output.remove(f"{RECORDS}/{place.split}/{record}")


def _is_whole(record: dict[str, Any], stem: str, sidecars: dict[str, File], tars: dict[str, File]) -> bool:
    samples = record["samples"]
    if sidecars[f"{stem}.members"].size != samples * len(record["members"]) * MEMBER.itemsize:
        return False
    expected = {f"{stem}.tar": record["bytes"], f"{stem}.tar.idx": 8 * (samples + 1)} if samples else {}
    return all(tars[name].size == size for name, size in expected.items())
