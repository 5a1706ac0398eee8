"""What a run trains on: one shard set, or several mixed by weight, and which sample stands at which position.

A single set is read epoch by epoch, the tail that fills no global batch dropped. In a mixture every set has its own
endless sequence of epochs, and the positions are dealt in cycles of ``CYCLE``: each set has its share of a cycle's
places, by weight, and the places are shuffled. So what stands at a position is found without those before it, over a
cycle the shares are exact, and up to that shuffling no set repeats a sample before it has given all.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.shards.hashing import hash64, shuffled
from mpp.shards.indexing import open_any
from mpp.shards.shardset import ShardSet, is_remote, shown
from mpp.stream.order import EpochOrder, Ints, count_steps, rank_positions

CYCLE = 4096  # positions over which the shares of a mixture are exact; a weight below 1 / CYCLE of all gets one place
_CYCLES = 6  # keeps these draws apart from those of the order, the views and the masks


@config
class Part:
    """One shard set of a mixture."""

    shards: str = Field(description="folder that mpp-shard or mpp index wrote, WebDataset tars, or a URL of such")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of the samples that are read, before all are scaled to 1"
    )
    split: str | None = Field(None, description="split of this set; null: the split of the run")


Shards = str | tuple[str | Part, ...]  # one set, or those of a mixture


class Draw(NamedTuple):
    """Samples [n] to read: their ids, and the epoch of its own set that each is in."""

    ids: Ints
    epochs: Ints


@dataclass(frozen=True)
class Mixture:
    """Shard sets with their weights; sample ids run over the sets in this order, from 0."""

    sets: tuple[ShardSet, ...]
    weights: tuple[float, ...]

    @property
    def samples(self) -> int:
        """Return the number of samples in all sets."""
        return sum(one.samples for one in self.sets)

    @property
    def remote(self) -> bool:
        """Say whether a shard lies behind a URL."""
        return any(is_remote(one.root, shard) for one in self.sets for shard in one.shards)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Return the class names, None where a set has no labels."""
        return self.sets[0].classes if len({one.classes for one in self.sets}) == 1 else None

    @cached_property
    def fingerprint(self) -> str:
        """Return what stands for the shards, of a mixture also for their weights."""
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        text = json.dumps([[one.fingerprint, share] for one, share in zip(self.sets, self.shares, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def shares(self) -> list[int]:
        """Return the places of a cycle that each set has: by weight, at least one, largest remainders rounded up."""
        exact = np.array(self.weights) / sum(self.weights) * CYCLE
        shares = np.maximum(1, np.floor(exact)).astype(int)
        while left := CYCLE - int(shares.sum()):
            if left > 0:
                shares[np.argmax(exact - shares)] += 1
            else:  # the place that each of the smallest has is one of the largest
                shares[np.argmax(shares)] -= 1
        return [int(share) for share in shares]

    def require_labels(self) -> None:
        """Raise ``DataError`` where a set has no labels, or another list of classes than the first."""
        for one in self.sets:
            one.require_labels()
        if self.classes is None:
            counts = ", ".join(f"{shown(one.root)}: {len(one.classes or ())}" for one in self.sets)
            raise DataError(
                f"the sets of the mixture have different classes ({counts})", fix="shard them with the same"
            )

    def order(self, seed: int, global_batch: int) -> "Order":
        """Return the order of a run; raise ``DataError`` where the samples do not fill one global batch."""
        orders = [EpochOrder([shard.samples for shard in one.shards], seed) for one in self.sets]
        if len(orders) == 1:
            return SingleOrder(orders[0], global_batch)
        return MixedOrder(orders, self.shares, global_batch)


def open_mixture(shards: Shards, split: str) -> Mixture:
    """Open one set, or the parts of a mixture; raise ``DataError`` or ``ConfigError`` where that is impossible."""
    if isinstance(shards, str):
        return as_mixture(open_any(shards, split))
    parts = [Part(shards=part) if isinstance(part, str) else part for part in shards]
    return mixed([open_any(part.shards, part.split or split) for part in parts], [part.weight for part in parts])


def as_mixture(shards: ShardSet | Mixture) -> Mixture:
    """Return a set as a mixture of one."""
    return shards if isinstance(shards, Mixture) else Mixture((shards,), (1.0,))


def mixed(sets: Sequence[ShardSet], weights: Sequence[float]) -> Mixture:
    """Return a mixture; raise ``ConfigError`` for too many sets, or one that is named twice."""
    if not sets:
        raise ConfigError("a mixture of no sets", fix="shards=FOLDER")
    if len(sets) > CYCLE // 4:
        raise ConfigError(f"a mixture of {len(sets)} sets, at most {CYCLE // 4}", fix="shard several of them as one")
    doubles = [shown(one.root) for one in sets if sum(one.fingerprint == other.fingerprint for other in sets) > 1]
    if doubles:
        raise ConfigError(f"{' and '.join(doubles)}: the same shards twice in a mixture", fix="one part, more weight")
    return Mixture(tuple(sets), tuple(weights))


class SingleOrder:
    """The order of one set (or of a subset, as one shard): whole global batches of an epoch, then the next epoch."""

    def __init__(self, order: EpochOrder, global_batch: int) -> None:
        self.orders, self.global_batch = (order,), global_batch
        self.steps_per_epoch = count_steps(order.num_samples, global_batch)

    def draw(self, steps: range, rank: int, world: int) -> Draw:
        """Return what a rank reads in some global steps, one after the other."""
        ids, epochs = [], []
        for epoch in range(steps.start // self.steps_per_epoch, (steps.stop - 1) // self.steps_per_epoch + 1):
            first = epoch * self.steps_per_epoch
            begin, end = max(steps.start, first) - first, min(steps.stop - first, self.steps_per_epoch)
            ids.append(self.orders[0].ids(epoch, rank_positions(range(begin, end), self.global_batch, rank, world)))
            epochs.append(np.full(len(ids[-1]), epoch, np.int64))
        return Draw(np.concatenate(ids), np.concatenate(epochs))

    def needs(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield (shard, last step at which it may be read) from a step on, without end, in the order of need."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        while True:
            for shard, last in self.orders[0].needs(epoch, step_in_epoch * self.global_batch):
                yield shard, epoch * self.steps_per_epoch + min(last // self.global_batch, self.steps_per_epoch - 1)
            epoch, step_in_epoch = epoch + 1, 0


class MixedOrder:
    """The order of a mixture: see the top of this file. ``shares`` are the places of each set in a cycle."""

    def __init__(self, orders: Sequence[EpochOrder], shares: Sequence[int], global_batch: int) -> None:
        self.orders, self.shares, self.global_batch = tuple(orders), np.array(shares, np.int64), global_batch
        sizes = np.array([order.num_samples for order in orders], np.int64)
        if not sizes.all():
            raise DataError(f"part {int(np.argmin(sizes))} of the mixture has no samples", fix="leave it out")
        self._offsets, self._ends = np.cumsum(sizes) - sizes, np.cumsum(self.shares)
        self.steps_per_epoch = count_steps(int(sizes.sum()), global_batch)

    def draw(self, steps: range, rank: int, world: int) -> Draw:
        """Return what a rank reads in some global steps, one after the other."""
        positions = rank_positions(steps, self.global_batch, rank, world)
        cycles = positions // CYCLE
        places = shuffled(positions % CYCLE, CYCLE, hash64(_CYCLES, self.orders[0].seed, cycles))
        owners = np.searchsorted(self._ends, places, side="right")
        counts = cycles * self.shares[owners] + places - (self._ends - self.shares)[owners]
        ids, epochs = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for owner, order in enumerate(self.orders):
            own_epochs = counts // order.num_samples
            for epoch in np.unique(own_epochs[owners == owner]).tolist():
                here = np.flatnonzero((owners == owner) & (own_epochs == epoch))
                ids[here] = self._offsets[owner] + order.ids(epoch, counts[here] % order.num_samples)
                epochs[here] = epoch
        return Draw(ids, epochs)

    def needs(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield (shard, last step at which it may be read) from a step on, without end, in the order of need."""
        firsts = np.cumsum([0, *(len(order.sizes) for order in self.orders)]).tolist()
        parts = [_begun(self._part_needs(owner, firsts[owner], step), step) for owner in range(len(self.orders))]
        return (need for _, need in heapq.merge(*parts, key=lambda pair: pair[0]))

    def _part_needs(self, owner: int, first_shard: int, step: int) -> Iterator[tuple[int, int]]:
        """Yield the needs of one set; its n-th sample is read in cycle n / share, and ``first_shard`` is its first."""
        order, share = self.orders[owner], int(self.shares[owner])
        epoch, position = divmod(step * self.global_batch // CYCLE * share, order.num_samples)
        while True:
            for shard, last in order.needs(epoch, position):
                cycle = (epoch * order.num_samples + last) // share
                yield first_shard + shard, ((cycle + 1) * CYCLE - 1) // self.global_batch
            epoch, position = epoch + 1, 0


def _begun(needs: Iterator[tuple[int, int]], step: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Put before each need the step at which its window begins: where the one before it ends."""
    begin = last = step
    for need in needs:
        if need[1] != last:
            begin, last = last, need[1]
        yield begin, need


Order = SingleOrder | MixedOrder
