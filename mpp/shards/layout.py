"""Which sample goes into which shard: a pure function of the listing and the options.

The samples of a split are put into one seeded order, cut into shards, and named by their position in that
order, so that a sequential reader of any shard sees mixed classes. Nothing here touches a file.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mpp.config import config
from mpp.shards.hashing import INCREMENT, hash64

FORMAT_VERSION = 1
ENOUGH_SHARDS = 8 * 64  # eight shards for each of 64 lanes of the stream
FEWEST_SAMPLES = 1_000  # a shard is not cut below this only to get enough shards

Int64s = npt.NDArray[np.int64]


@config
class ShardOptions:
    """Everything that ``mpp-shard`` can be told."""

    source: str = Field(description="folder of images, folder of parquet files, or Hub dataset OWNER/NAME")
    out: Path = Field(description="folder for the shards")
    labels: str = Field("auto", description="auto, none, folders (class folders), or the name of a column")
    image: str | None = Field(None, description="image column of a dataset; found by its type where not given")
    shard_samples: int = Field(10_000, gt=0, description="most samples in a shard")
    shard_bytes: int = Field(256_000_000, gt=0, description="most source bytes in a shard")
    resize: int | None = Field(None, gt=0, description="shorter side of stored images, pixels; never enlarges")
    format: Literal["auto", "jpg", "png"] = Field("auto", description="stored format; auto: jpg where any source is")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of images that must be encoded again")
    max_pixels: int = Field(50_000_000, gt=0, description="images with more pixels are refused")
    min_side: int = Field(1, gt=0, description="images with a shorter side below this are refused, pixels")
    max_aspect: float = Field(1000.0, ge=1, description="images longer than this, longer / shorter side, are refused")
    max_refused: float = Field(0.01, ge=0, le=1, description="fraction of refused images that is still a success")
    workers: int | None = Field(None, ge=0, description="processes; 0 works in this one; default: one a CPU")
    seed: int = Field(0, description="seed of the order of the samples")

    def fixed(self) -> dict[str, Any]:
        """Return the options that decide the bytes of the shards; the others may change between runs."""
        free = ("source", "out", "max_refused", "workers")
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in free}


@dataclass(frozen=True)
class Split:
    """The listed images of one split: where each is, how many bytes it has and its label, in listing order."""

    sources: tuple[str, ...]
    sizes: Int64s
    labels: Int64s | None


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: ``items[k]`` is the listing number of the sample with key ``first + k``."""

    split: str
    name: str
    first: int
    items: Int64s


def mixed_order(count: int, seed: int, salt: str) -> Int64s:
    """Return a permutation of ``range(count)`` that depends on ``seed`` and ``salt`` alone.

    Items are sorted by successive outputs of SplitMix64, which no library version changes.
    """
    start = np.uint64(int.from_bytes(hashlib.sha256(f"{seed}/{salt}".encode()).digest()[:8], "little"))
    return np.argsort(hash64(start + np.arange(count, dtype=np.uint64) * INCREMENT), kind="stable")


def plan_shards(split: str, sizes: Int64s, *, seed: int, shard_samples: int, shard_bytes: int) -> list[ShardPlan]:
    """Cut one split into shards of at most ``shard_samples`` samples and ``shard_bytes`` source bytes.

    A large split gets at least ``ENOUGH_SHARDS`` shards. A single image above ``shard_bytes`` has its own shard.
    """
    count = len(sizes)
    most = min(shard_samples, max(FEWEST_SAMPLES, count // ENOUGH_SHARDS))
    even = -(-count // -(-count // most)) if count else 1
    order = mixed_order(count, seed, split)
    plans, first, total = [], 0, 0
    for position, size in enumerate(sizes[order].tolist()):
        if position > first and (position - first == even or total + size > shard_bytes):
            plans.append((first, position))
            first, total = position, 0
        total += size
    plans += [(first, count)] if count else []
    return [
        ShardPlan(split, f"{split}/{split}-{number:06d}.tar", begin, order[begin:end])
        for number, (begin, end) in enumerate(plans)
    ]


def listing_hash(splits: dict[str, Split], classes: tuple[str, ...] | None) -> str:
    """Return the sha256 of every source, size and label of a listing."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name, split in sorted(splits.items()):
        digest.update(json.dumps([name, split.sources]).encode())
        digest.update(split.sizes.astype("<i8").tobytes())
        digest.update(b"-" if split.labels is None else split.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def options_hash(fixed: dict[str, Any]) -> str:
    """Return the sha256 of the options that decide the bytes of the shards."""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def layout_hash(listing: str, options: str) -> str:
    """Return the sha256 that stands for a listing under options in this version of the format."""
    return hashlib.sha256(f"{FORMAT_VERSION}/{listing}/{options}".encode()).hexdigest()
