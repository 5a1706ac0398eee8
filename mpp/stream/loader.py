"""Batches for a rank: the endless training stream that begins at any step, and the finite evaluation batches.

One item of the underlying DataLoader is a whole micro-batch, made by one worker as one uint8 tensor (batches.py); which
samples it holds is decided in this process (order.py, mixture.py), so neither the number of workers nor a restart
changes anything.

Shapes: B images of a micro-batch, H and W the height and width in pixels, N samples of a split.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field

from mpp.config import config
from mpp.disk import cache_folder
from mpp.errors import DataError
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import PADDING, Batch, Batches
from mpp.stream.cache import NodeCache
from mpp.stream.fetching import FetchAhead
from mpp.stream.mixture import Draw, Mixture, Order, SingleOrder, as_mixture
from mpp.stream.order import EpochOrder, Ints, check_divides
from mpp.stream.reader import ShardReader
from mpp.stream.stall import Skip, StallClock
from mpp.stream.state import StreamState
from mpp.stream.views import ViewConfig
from mpp.stream.workers import SLOTS, made_batches

DRAWN_AT_ONCE = 4096  # samples whose order is worked out together, which costs little more than for one
CACHE_AHEAD = 0.8  # share of the node's cache for shards that are still to be read


@config
class StreamConfig:
    """How samples are read and decoded; nothing here changes what is trained on."""

    workers: int = Field(4, ge=0, description="data-loading processes per process; 0: none")
    threads: int = Field(1, gt=0, description="decoding threads of each of them")
    timeout: float = Field(180.0, gt=0, description="seconds that a batch may take")
    max_bad_fraction: float = Field(
        0.001, ge=0, lt=1, description="share of the samples that may be unusable, and are replaced by their neighbours"
    )
    cache: Path | None = Field(
        None, description="folder for copies of remote shards, shared by a node; null: $MPP_CACHE or ~/.cache/mpp"
    )
    cache_gb: float = Field(100.0, ge=0, description="most of its size, GB; 0: remote shards are read in ranges alone")

    def node_cache(self) -> NodeCache | None:
        """Return the cache, None where none is wanted."""
        folder = self.cache or cache_folder()
        return NodeCache(folder / "shards", int(self.cache_gb * 1e9)) if self.cache_gb else None


class TrainStream(Iterator[Batch]):
    """The endless micro-batches of one rank from global step ``start_step`` on.

    A global step has ``global_batch / world / micro_batch`` of them. ``clock`` knows the waiting. Raises ``DataError``
    naming a sample or shard that cannot be read, ``HangError`` where no batch comes in time.
    """

    def __init__(
        self,
        shards: ShardSet | Mixture,
        views: ViewConfig,
        size: tuple[int, int],
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        subset: Ints | None = None,
        settings: StreamConfig | None = None,
    ) -> None:
        """Open the stream: ``size`` is (H, W), ``subset`` the ids to train on.

        Raises ``ConfigError`` where the batches do not divide, ``DataError`` where the samples do not fill
        one global batch.
        """
        settings, mixture = settings or StreamConfig(), as_mixture(shards)
        check_divides(global_batch, world, micro_batch)
        self._subset = None if subset is None else np.asarray(subset, np.int64)
        if self._subset is None:
            self._order: Order = mixture.order(seed, global_batch)
        else:
            self._order = SingleOrder(EpochOrder([len(self._subset)], seed), global_batch)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.clock, self._fingerprint, self._settings = StallClock(), mixture.fingerprint, settings
        samples = sum(order.num_samples for order in self._order.orders)
        self._skips = self._seen = 0
        self._share, self._world, self._said = samples / world, world, set[int]()
        cache = settings.node_cache() if mixture.remote else None
        self._reader = ShardReader(*mixture.sets, cache=cache)
        self._fetching = None
        if cache is not None and self._subset is None:  # the order of a subset knows nothing of shards
            self._fetching = self._fetch_ahead(start_step, int(CACHE_AHEAD * cache.limit_bytes))
        # What takes the place of a bad sample must be one that may be trained on.
        replace, threads = self._subset is None, settings.threads
        dataset = Batches(
            self._reader, views, size, count=micro_batch, slots=SLOTS, seed=seed, replace=replace, threads=threads
        )
        schedule = self._schedule(start_step, micro_batch, rank, world)
        self._batches = made_batches(dataset, schedule, settings.workers, settings.timeout)

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch, cost, ready = next(self._batches)
        if self._settings.workers:  # what this process read was read ahead
            traffic = self._reader.storage.traffic
            traffic.retries, retries = 0, traffic.retries
            cost = cost._replace(retries=cost.retries + retries)
        self.clock.add(time.perf_counter() - began, ready, cost)
        self._seen += cost.images
        for skip in cost.skipped:
            self._note(skip)
        return batch

    def state(self, step: int) -> StreamState:
        """Return the state before global step ``step``; ``samples_seen / global_batch`` is the step to begin at."""
        return StreamState.at(step, self._order, self._fingerprint)

    def where(self, sample_id: int) -> str:
        """Return the shard and key of a sample."""
        return self._reader.where(sample_id)

    def close(self) -> None:
        """End the workers; the stream gives no more batches."""
        self._batches.close()
        if self._fetching is not None:
            self._fetching.close()

    def _schedule(self, step: int, micro_batch: int, rank: int, world: int) -> Iterator[Draw]:
        own = self._order.global_batch // world
        at_once = max(1, min(DRAWN_AT_ONCE // own, self.steps_per_epoch))  # small sets start at once, too
        while True:
            ids, epochs = self._order.draw(range(step, step + at_once), rank, world)
            ids = ids if self._subset is None else self._subset[ids]
            ids, epochs = (_dealt(values, own // micro_batch, micro_batch) for values in (ids, epochs))
            for first in range(0, len(ids), micro_batch):
                if self._fetching is not None and first % own == 0:
                    self._fetching.advance(step + first // own)
                yield Draw(ids[first : first + micro_batch], epochs[first : first + micro_batch])
            step += at_once

    def _fetch_ahead(self, start_step: int, room: int) -> FetchAhead:
        storage = self._reader.storage
        sizes = [shard.record.bytes for shard in storage.shards]
        return FetchAhead(self._order.needs(start_step), storage.fetch, sizes, room, self.steps_per_epoch)

    def _note(self, skip: Skip) -> None:
        """Say that a sample was skipped, once; raise ``DataError`` where too many of those that were read are.

        An epoch, even one that has only begun, may hold as many as the share allows: bad samples may all come first.
        One rank of several meets now more and now fewer of them, three standard deviations of that are allowed for.
        """
        self._skips += 1
        most = self._settings.max_bad_fraction * self._share * max(1, math.ceil(self._seen / self._share))
        most += 3 * math.sqrt(most) if self._world > 1 else 0
        if self._skips > most:
            raise DataError(
                f"{skip.reason}\n  {self._skips} unusable of the samples read, at most {most:.3g} up to here",
                fix="mpp verify SHARDS full=true; stream.max_bad_fraction=0.01 skips more of them",
            )
        if skip.sample_id not in self._said:
            self._said.add(skip.sample_id)
            print(f"skipped: {skip.reason}; sample {skip.instead} takes its place", file=sys.stderr, flush=True)


def _dealt(values: Ints, count: int, micro_batch: int) -> Ints:
    """Return what belongs to the samples of whole steps [n] in the order of their ``count`` micro-batches.

    A step's samples are dealt out in turn, over its micro-batches as over processes: so the micro-batches of a size
    are the same ones for every number of processes, and the gradient is the same but for the order of a sum.
    """
    return values.reshape(-1, micro_batch, count).swapaxes(1, 2).reshape(-1)


def evaluation_batches(
    shards: ShardSet | Mixture,
    views: ViewConfig,
    size: tuple[int, int],
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    subset: Ints | None = None,
    replace: bool = False,
    settings: StreamConfig | None = None,
) -> Iterator[Batch]:
    """Return the evaluation views of every example once over all ranks, in equally many batches of equal size a rank.

    Position p of the split (or of ``subset``) is seen by rank p % world; places beyond the end have id and label -1.
    ``batch`` is the most images of a batch. Raises ``DataError`` naming a sample that cannot be used; with ``replace``,
    for what is no test, its neighbour takes its place.
    """
    settings, mixture = settings or StreamConfig(workers=0), as_mixture(shards)
    ids = np.arange(mixture.samples, dtype=np.int64) if subset is None else np.asarray(subset, np.int64)
    own = -(-len(ids) // world)
    count = -(-own // batch)
    each = -(-own // max(1, count))
    padded = np.full(count * each * world, PADDING, np.int64)
    padded[: len(ids)] = ids
    schedule = [Draw(rows, np.zeros_like(rows)) for rows in padded[rank::world].reshape(count, each)]
    cache = settings.node_cache() if mixture.remote else None
    reader = ShardReader(*mixture.sets, cache=cache)
    dataset = Batches(
        reader, views, size, count=each, slots=SLOTS, seed=None, replace=replace, threads=settings.threads
    )
    items = made_batches(dataset, schedule, min(settings.workers, count), settings.timeout)
    return (batch for batch, _, _ in items)
