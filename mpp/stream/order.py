"""Which sample is read when, and by whom: pure functions of integers.

The order of an epoch, here of 3 shards in 2 lanes with windows of 4 samples:

    shards, permuted by (seed, epoch)   [ shard 2      | shard 0      | shard 1      ]   one sequence of N samples
    lanes, contiguous                   [ lane 0               | lane 1              ]   lengths differ by one at most
    windows, each permuted              [ w0   | w1    | w2    | w0   | w1    | w2   ]
    position p of the epoch             = sample p // L of lane p % L

So neighbours in time come from all lanes, every sample comes once, a position is found without those before it
and without a table, and a reader has only a few shards in use. Position p of a global batch belongs to rank
p % world, so the samples of a global step are the same for every number of processes.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mpp.errors import ConfigError, DataError
from mpp.shards.hashing import hash64, permutation, shuffled

Ints = NDArray[np.int64]
MAX_LANES = 64
WINDOW_SHARDS = 8

# The purpose of a draw is part of what is hashed, so that shards and samples are permuted independently.
_SHARDS, _SAMPLES = 1, 2


class EpochOrder:
    """The order of every epoch over shards of the given numbers of samples; sample ids run over shards in order.

    ``num_lanes`` and ``window`` (samples) follow from the shards alone.
    """

    def __init__(self, shard_samples: Sequence[int], seed: int) -> None:
        self.seed = seed
        self.sizes: Ints = np.asarray(shard_samples, dtype=np.int64)
        self.num_samples = int(self.sizes.sum())
        num_shards = max(1, len(self.sizes))
        self.num_lanes = 1 << (max(1, min(MAX_LANES, num_shards // WINDOW_SHARDS)).bit_length() - 1)
        self.window = max(1, WINDOW_SHARDS * -(-self.num_samples // num_shards))
        self._firsts = np.cumsum(self.sizes) - self.sizes
        self._shards = lru_cache(maxsize=2)(self._permuted_shards)

    def ids(self, epoch: int, positions: Ints) -> Ints:
        """Return the sample ids [n] at these positions [n] of an epoch, each in ``range(num_samples)``."""
        lanes, rows = positions % self.num_lanes, positions // self.num_lanes
        windows = rows // self.window
        begins, ends = self._lane_bounds(lanes)
        begins = begins + windows * self.window
        lengths = np.minimum(ends - begins, self.window)
        keys = hash64(_SAMPLES, self.seed, epoch, lanes, windows)
        places = np.empty(len(positions), np.int64)
        for length in np.unique(lengths).tolist():  # whole windows, and the last ones of longer and shorter lanes
            here = np.flatnonzero(lengths == length)
            places[here] = begins[here] + shuffled(rows[here] % self.window, length, keys[here])
        order, begins_in_order = self._shards(epoch)
        shard = np.searchsorted(begins_in_order, places, side="right") - 1
        return self._firsts[order[shard]] + places - begins_in_order[shard]

    def needs(self, epoch: int, position: int) -> Iterator[tuple[int, int]]:
        """Yield (shard, last position at which it may be read) from ``position`` to the end of an epoch.

        They come window by window, so in the order of need; a shard comes again with each window that it reaches into.
        """
        order, begins = self._shards(epoch)
        lane_begins, lane_ends = self._lane_bounds(np.arange(self.num_lanes, dtype=np.int64))
        for window in range(position // self.num_lanes // self.window, -(-self.num_samples // self.num_lanes)):
            lows = lane_begins + window * self.window
            highs = np.minimum(lows + self.window, lane_ends)
            if not (lows < highs).any():
                return
            last = min((window + 1) * self.window * self.num_lanes, self.num_samples) - 1
            for low, high in zip(lows[lows < highs], highs[lows < highs], strict=True):
                first, end = np.searchsorted(begins, [low, high - 1], side="right")
                yield from ((shard, last) for shard in order[first - 1 : end].tolist() if self.sizes[shard])

    def _lane_bounds(self, lanes: Ints) -> tuple[Ints, Ints]:
        """Return where lanes begin and end in the sequence of samples."""
        short, longer = divmod(self.num_samples, self.num_lanes)
        return lanes * short + np.minimum(lanes, longer), (lanes + 1) * short + np.minimum(lanes + 1, longer)

    def _permuted_shards(self, epoch: int) -> tuple[Ints, Ints]:
        """Return the shards in this epoch's order, and where each begins in the sequence."""
        order = permutation(len(self.sizes), _SHARDS, self.seed, epoch)
        return order, np.cumsum(self.sizes[order]) - self.sizes[order]


def rank_positions(steps: range, global_batch: int, rank: int, world: int) -> Ints:
    """Return the positions [len(steps) * global_batch / world] that a rank reads in global steps; it must divide."""
    assert global_batch % world == 0, (global_batch, world)
    return np.arange(steps.start * global_batch + rank, steps.stop * global_batch, world, dtype=np.int64)


def check_divides(global_batch: int, world: int, micro_batch: int) -> None:
    """Raise ``ConfigError``, naming the numbers that do, where the global batch cannot be divided over processes,
    or the part of a process into micro-batches."""
    if global_batch % world:
        raise ConfigError(
            f"global batch {global_batch} cannot be divided over {world} processes; use {_divisors(global_batch)}"
        )
    own = global_batch // world
    if own % micro_batch:
        raise ConfigError(
            f"the {own} samples of a process in a global batch of {global_batch} cannot be divided into micro-batches "
            f"of {micro_batch}; use {_divisors(own)}"
        )


def count_steps(num_samples: int, global_batch: int) -> int:
    """Return the global steps of an epoch, the tail dropped; raise ``DataError`` where not even one is full."""
    if num_samples < global_batch:
        raise DataError(
            f"{num_samples} samples do not fill one global batch of {global_batch}",
            fix=f"a global batch of {num_samples} or less, or more images" if num_samples else "shard some images",
        )
    return num_samples // global_batch


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
