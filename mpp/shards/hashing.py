"""Integers mixed into evenly spread integers: the only randomness of the shards and of the stream.

numpy's own generators are not promised to stay the same across its versions; these functions are, for every
shard set and every run depends on them.
"""

import numpy as np
from numpy.typing import NDArray

INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # between two states of SplitMix64
_MASK = (1 << 64) - 1
FEISTEL_ROUNDS = 6


def hash64(*parts: int | NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix integers, or arrays of them that broadcast, into evenly spread uint64 numbers (SplitMix64, chained).

    Of one part it is the output of SplitMix64 from that state. The result has at least one dimension.
    """
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for part in parts:
        number = np.atleast_1d(np.asarray(part & _MASK if isinstance(part, int) else part).astype(np.uint64))
        state = state + number + INCREMENT
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def permutation(num: int, *key: int) -> NDArray[np.int64]:
    """Return the permutation of ``range(num)`` that belongs to the integers ``key``."""
    return np.argsort(hash64(*key, np.arange(num, dtype=np.int64)), kind="stable")


def shuffled(positions: NDArray[np.int64], num: int, *key: int | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return what stands at ``positions`` [n] of the shuffled ``range(num)`` that belongs to the integers ``key``.

    An array [n] in the key gives each position an order of its own. Unlike :func:`permutation` it needs memory for the
    positions asked for alone: a Feistel network over the smallest power of four that holds ``num``, walked on until
    the number is below ``num`` (Black and Rogaway 2002).
    """
    half = max(1, (max(num - 1, 1).bit_length() + 1) // 2)
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    numbers = positions.astype(np.uint64)
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = numbers[walking] >> shift, numbers[walking] & low
        keys = [part if isinstance(part, int) else part[walking] for part in key]
        for turn in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (hash64(*keys, turn, right) & low)
        numbers[walking] = left << shift | right
        walking = walking[numbers[walking] >= num]
    return numbers.astype(np.int64)
