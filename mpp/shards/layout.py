"""Which sample goes into which shard: a pure function of the listing and the options.

The samples of a split are put into one seeded order, cut into shards, and named by their position in that
order, so that a sequential reader of any shard sees mixed classes. Nothing here touches a file, and nothing
needs memory for more images than those of one shard.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpp.shards.hashing import shuffled

FORMAT_VERSION = 2
ENOUGH_SHARDS = 8 * 64  # eight shards for each of 64 lanes of the stream
FEWEST_SAMPLES = 1_000  # a shard is not cut below this only to get enough shards
BYTES_WHERE_UNKNOWN = 128 * 1024  # of an image whose size only reading would tell

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: ``items[k]`` is the listing number of the sample with key ``first + k``."""

    split: str
    name: str
    first: int
    items: Int64s


def shard_name(split: str, number: int) -> str:
    """Return the name of a shard's tar below the root."""
    return f"{split}/{split}-{number:06d}.tar"


def mixed_order(first: int, end: int, count: int, seed: int, split: str) -> Int64s:
    """Return the items at positions ``first`` to ``end`` of the seeded order of the ``count`` items of a split."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{split}".encode()).digest()[:8], "little")
    return shuffled(np.arange(first, end, dtype=np.int64), count, key)


def plan_shard(split: str, bounds: Mapping[str, Sequence[int]], number: int, seed: int) -> ShardPlan:
    """Return shard ``number`` of a split; each is cut at its ``bounds``, and keys count on from split to split."""
    first, end, count = bounds[split][number], bounds[split][number + 1], bounds[split][-1]
    splits = list(bounds)
    before = sum(bounds[name][-1] for name in splits[: splits.index(split)])
    return ShardPlan(split, shard_name(split, number), before + first, mixed_order(first, end, count, seed, split))


def cut_shards(split: str, sizes: Int64s, *, seed: int, shard_samples: int, shard_bytes: int) -> list[int]:
    """Return the positions at which a split is cut: shard k is from the k-th to the next.

    A shard has at most ``shard_samples`` samples and ``shard_bytes`` source bytes. A large split gets at least
    ``ENOUGH_SHARDS`` shards. A single image above ``shard_bytes`` has its own shard.
    """
    count = len(sizes)
    most = min(shard_samples, max(FEWEST_SAMPLES, count // ENOUGH_SHARDS))
    even = -(-count // -(-count // most)) if count else 1
    bounds = [0]
    while bounds[-1] < count:
        items = mixed_order(bounds[-1], min(bounds[-1] + even, count), count, seed, split)
        known = np.where(sizes[items] < 0, BYTES_WHERE_UNKNOWN, sizes[items])
        fit = int(np.searchsorted(np.cumsum(known), shard_bytes, side="right"))
        bounds.append(bounds[-1] + max(1, fit))
    return bounds


def options_hash(fixed: dict[str, Any]) -> str:
    """Return the sha256 of the options that decide the bytes of the shards."""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def layout_hash(listing: str, options: str) -> str:
    """Return the sha256 that stands for a listing under options in this version of the format."""
    return hashlib.sha256(f"{FORMAT_VERSION}/{listing}/{options}".encode()).hexdigest()
