"""Some samples that stand for a whole shard set: chosen evenly, read from the tars, drawn small."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpp.shards.shardset import ShardSet, place, read_members, read_payload

MOST_SHARDS = 256  # shards of a split that samples are taken from
LARGEST = 100_000_000  # pixels; larger images are not decoded to be drawn small
Ints = npt.NDArray[np.int64]
Member = tuple[int, int, int]  # offset, size, crc32


class Sample(NamedTuple):
    """One sample: its ``image`` member in ``tar``, its label if it has one, and its json member."""

    split: str
    tar: Path
    image: Member
    label: int | None
    fields: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Return stored width and height."""
        return self.fields["width"], self.fields["height"]

    @property
    def found(self) -> tuple[int, int]:
        """Return the source's width and height."""
        return self.fields["original_width"], self.fields["original_height"]


def spread(count: int, most: int) -> Ints:
    """Return at most ``most`` of the numbers below ``count``, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def sample_split(shards: ShardSet, most: int) -> Iterator[Sample]:
    """Yield at most ``most`` samples of one split, evenly spaced over at most ``MOST_SHARDS`` of its shards.

    Writing mixed the samples over all shards, so some shards stand for all. Raises ``DataError`` for damage.
    """
    chosen = spread(len(shards.shards), MOST_SHARDS)
    sizes = np.array([shards.shards[shard].samples for shard in chosen])
    picks = spread(int(sizes.sum()), most)
    for shard, begin, size in zip(chosen.tolist(), np.cumsum(sizes) - sizes, sizes, strict=True):
        yield from _read_rows(shards, shard, picks[(picks >= begin) & (picks < begin + size)] - begin)


def picture(sample: Sample, side: int) -> str | None:
    """Return the image as a data URI, a JPEG of at most ``side`` pixels, or None above ``LARGEST`` pixels."""
    if sample.size[0] * sample.size[1] > LARGEST:
        return None
    with open(sample.tar, "rb") as file:
        raw = _payload(file.fileno(), sample.tar, sample.image)
    target = io.BytesIO()
    with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
        image.thumbnail((side, side))
        image.save(target, "JPEG", quality=84, subsampling="4:4:4" if max(image.size) < side else "4:2:0")
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def _read_rows(shards: ShardSet, number: int, rows: Ints) -> Iterator[Sample]:
    """Yield the samples in ``rows`` of one shard."""
    if not rows.size:
        return
    shard = shards.shards[number]
    tar, members = Path(place(shards.root, shard.name)), read_members(shards, number)
    image = next(name for name in shard.members if name not in ("cls", "json"))
    with open(tar, "rb") as file:
        for row in members[rows]:
            at: dict[str, Member] = {name: row[column].item() for column, name in enumerate(shard.members)}
            label = int(_payload(file.fileno(), tar, at["cls"])) if "cls" in at else None
            fields = json.loads(_payload(file.fileno(), tar, at["json"]))
            yield Sample(shards.split, tar, at[image], label, fields)


def _payload(descriptor: int, tar: Path, member: Member) -> bytes:
    return read_payload(descriptor, member, f"{tar.parent.name}/{tar.name}: a member", str(tar.parents[1]))
