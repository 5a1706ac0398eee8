"""Which sample is read when, and by whom: pure functions of integers.

The order of an epoch, here of 3 shards in 2 lanes with windows of 4 samples:

    shards, permuted by (seed, epoch)   [ shard 2      | shard 0      | shard 1      ]   one sequence of N samples
    lanes, contiguous                   [ lane 0               | lane 1              ]   lengths differ by one at most
    windows, each permuted              [ w0   | w1    | w2    | w0   | w1    | w2   ]
    position p of the epoch             = sample p // L of lane p % L

So neighbours in time come from all lanes, every sample comes once, a position is found without those before it,
and a reader has only a few shards in use. Position p of a global batch belongs to rank p % world, so the samples
of a global step are the same for every number of processes.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mpp.errors import ConfigError, DataError
from mpp.shards.hashing import permutation

Ints = NDArray[np.int64]
MAX_LANES = 64
WINDOW_SHARDS = 8

# The purpose of a draw is part of what is hashed, so that shards and samples are permuted independently.
_SHARDS, _SAMPLES = 1, 2


class EpochOrder:
    """The order of every epoch over shards of the given numbers of samples; sample ids run over shards in order."""

    def __init__(self, shard_samples: Sequence[int], seed: int) -> None:
        self.seed = seed
        self.sizes: Ints = np.asarray(shard_samples, dtype=np.int64)
        self.num_samples = int(self.sizes.sum())
        num_shards = max(1, len(self.sizes))
        self.num_lanes = 1 << (max(1, min(MAX_LANES, num_shards // WINDOW_SHARDS)).bit_length() - 1)
        self.window = max(1, WINDOW_SHARDS * -(-self.num_samples // num_shards))
        self._shards = lru_cache(maxsize=2)(self._permuted_shards)
        self._window = lru_cache(maxsize=2 * self.num_lanes)(self._permuted_window)

    def ids(self, epoch: int, positions: Ints) -> Ints:
        """Return the sample ids [n] at these positions [n] of an epoch, each in ``range(num_samples)``."""
        lanes, rows = positions % self.num_lanes, positions // self.num_lanes
        windows = rows // self.window
        result = np.empty(len(positions), np.int64)
        keys, which = np.unique(np.stack([lanes, windows]), axis=1, return_inverse=True)
        for number, (lane, window) in enumerate(keys.T.tolist()):
            here = np.flatnonzero(which == number)
            result[here] = self._window(epoch, lane, window)[rows[here] - window * self.window]
        return result

    def _permuted_shards(self, epoch: int) -> tuple[Ints, Ints]:
        """Return the first sample id of every shard, in this epoch's order, and where each begins in the sequence."""
        order = permutation(len(self.sizes), _SHARDS, self.seed, epoch)
        firsts = np.cumsum(self.sizes) - self.sizes
        return firsts[order], np.cumsum(self.sizes[order]) - self.sizes[order]

    def _permuted_window(self, epoch: int, lane: int, window: int) -> Ints:
        """Return the sample ids of one window of a lane, in the order in which they are read."""
        short, longer = divmod(self.num_samples, self.num_lanes)
        begin = lane * short + min(lane, longer) + window * self.window
        end = min(begin + self.window, (lane + 1) * short + min(lane + 1, longer))
        places = begin + permutation(end - begin, _SAMPLES, self.seed, epoch, lane, window)
        firsts, begins = self._shards(epoch)
        shard = np.searchsorted(begins, places, side="right") - 1
        return firsts[shard] + places - begins[shard]


def rank_positions(step_in_epoch: int, global_batch: int, rank: int, world: int) -> Ints:
    """Return the positions [global_batch / world] in the epoch that a rank reads in one global step; it must divide."""
    assert global_batch % world == 0, (global_batch, world)
    first = step_in_epoch * global_batch
    return np.arange(first + rank, first + global_batch, world, dtype=np.int64)


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
