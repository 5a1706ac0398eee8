"""Batches for a rank: the endless training stream that begins at any step, and the finite evaluation batches.

One item of the underlying DataLoader is a whole micro-batch, made by one worker as one uint8 tensor (batches.py); which
samples it holds is decided in this process (order.py, mixture.py), so neither the number of workers nor a restart
changes anything.

Shapes: B images of a micro-batch, H and W the height and width in pixels, N samples of a split.
"""

import atexit
import math
import multiprocessing
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from mpp.config import config
from mpp.disk import cache_folder
from mpp.errors import DataError, HangError, MppError
from mpp.processes import end_with_parent, worker_context
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import PADDING, Batches, MadeBatch
from mpp.stream.cache import NodeCache
from mpp.stream.fetching import FetchAhead
from mpp.stream.mixture import Draw, Mixture, SingleOrder, as_mixture
from mpp.stream.order import EpochOrder, Ints, check_divides
from mpp.stream.reader import ShardReader
from mpp.stream.slots import SlotReader
from mpp.stream.stall import Cost, Skip, StallClock
from mpp.stream.state import StreamState
from mpp.stream.views import ViewConfig

SECONDS_TO_NOTICE = 0.5  # that a worker is gone
DRAWN_AT_ONCE = 4096  # samples whose order is worked out together, which costs little more than for one
BATCHES_AHEAD = 3  # that each worker may have ready
# The loader asks a worker for a further batch as it gives one of its batches to us, in the order in which they were
# asked for: until we ask for the next one, a worker fills at most this many slots that we have not read.
SLOTS = BATCHES_AHEAD + 1
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


class Batch(NamedTuple):
    """A micro-batch: images uint8 [B, 3, H, W]; labels (or None), sample ids and epochs of the views int64 [B].

    In evaluation the last batch is filled up with black images whose id and label are -1.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    epochs: Tensor


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
            self._order = mixture.order(seed, global_batch)
        else:
            self._order = SingleOrder(EpochOrder([len(self._subset)], seed), global_batch)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.clock, self._fingerprint = StallClock(), mixture.fingerprint
        self._bad: set[int] = set()
        samples = sum(order.num_samples for order in self._order.orders)
        self._most_bad = settings.max_bad_fraction * samples / world
        cache = settings.node_cache() if mixture.remote else None
        reader = ShardReader(*mixture.sets, cache=cache)
        dataset = Batches(
            reader,
            views,
            size,
            count=micro_batch,
            slots=SLOTS,
            seed=seed,
            replace=True,
            threads=settings.threads,
        )
        self._fetching = None
        if cache is not None and self._subset is None:  # the order of a subset knows nothing of shards
            sizes = [shard.record.bytes for shard in reader.storage.shards]
            room, needs = int(CACHE_AHEAD * cache.limit_bytes), self._order.needs(start_step)
            self._fetching = FetchAhead(needs, reader.storage.fetch, sizes, room, self.steps_per_epoch)
        schedule = self._schedule(start_step, micro_batch, rank, world)
        self._batches = _batches(dataset, schedule, settings.workers, settings.timeout)

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch, cost, ready = next(self._batches)
        self.clock.add(time.perf_counter() - began, ready, cost)
        for skip in cost.skipped:
            self._note(skip)
        return batch

    def state(self, step: int) -> StreamState:
        """Return the state before global step ``step``; ``samples_seen / global_batch`` is the step to begin at."""
        return StreamState.at(step, self._order, self._fingerprint)

    def close(self) -> None:
        """End the workers; the stream gives no more batches."""
        self._batches.close()
        if self._fetching is not None:
            self._fetching.close()

    def _schedule(self, step: int, micro_batch: int, rank: int, world: int) -> Iterator[Draw]:
        own = self._order.global_batch // world
        at_once = max(1, DRAWN_AT_ONCE // own)
        while True:
            ids, epochs = self._order.draw(range(step, step + at_once), rank, world)
            ids = ids if self._subset is None else self._subset[ids]
            for first in range(0, len(ids), micro_batch):
                if self._fetching is not None and first % own == 0:
                    self._fetching.advance(step + first // own)
                yield Draw(ids[first : first + micro_batch], epochs[first : first + micro_batch])
            step += at_once

    def _note(self, skip: Skip) -> None:
        """Say that a sample was skipped; raise ``DataError`` where there are too many such."""
        if skip.sample_id in self._bad:
            return
        self._bad.add(skip.sample_id)
        if len(self._bad) > self._most_bad:
            raise DataError(
                f"{skip.reason}\n  {len(self._bad)} unusable samples, at most {self._most_bad:.3g} for this process",
                fix="mpp verify SHARDS full=true; stream.max_bad_fraction=0.01 skips more of them",
            )
        print(f"skipped: {skip.reason}; sample {skip.instead} takes its place", file=sys.stderr, flush=True)


def evaluation_batches(
    shards: ShardSet | Mixture,
    views: ViewConfig,
    size: tuple[int, int],
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    subset: Ints | None = None,
    settings: StreamConfig | None = None,
) -> Iterator[Batch]:
    """Return the evaluation views of every example once over all ranks, in equally many batches of equal size a rank.

    Position p of the split (or of ``subset``) is seen by rank p % world; places beyond the end have id and label -1.
    ``batch`` is the most images of a batch. Raises ``DataError`` naming a sample that cannot be used: none is skipped.
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
    dataset = Batches(reader, views, size, count=each, slots=SLOTS, seed=None, replace=False, threads=settings.threads)
    items = _batches(dataset, schedule, min(settings.workers, count), settings.timeout)
    return (batch for batch, _, _ in items)


def _batches(
    dataset: Batches, schedule: Iterable[Draw], workers: int, timeout: float
) -> Generator[tuple[Batch, Cost, int]]:
    """Make the scheduled batches, ahead of time where there are workers; each comes with how many more were ready."""
    asked: deque[Draw] = deque()  # whose batches have not come
    slots = SlotReader(dataset.shape, pinned=torch.cuda.is_available())
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_noted(schedule, asked),
        num_workers=workers,
        timeout=min(timeout, SECONDS_TO_NOTICE) if workers else 0,
        multiprocessing_context=worker_context("mpp.stream.loader") if workers else None,
        worker_init_fn=_start_worker,
        collate_fn=_as_it_is,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        generator=torch.Generator(),  # else the loader draws from, and so changes, the global generator
    )
    with _running(loader) if workers else nullcontext((iter(loader), None)) as (items, kill):
        try:
            for item in items if kill is None else _patient(items, timeout, kill):
                asked.popleft()
                if isinstance(item, MppError):
                    raise item
                images = slots.copy(item.images)  # before the next item is asked for: its slot is filled again then
                labels = None if item.labels is None else torch.from_numpy(item.labels)
                batch = Batch(images, labels, torch.from_numpy(item.ids), torch.from_numpy(item.epochs))
                yield batch, item.cost, _ready(items) if workers else 0
        except TimeoutError as error:
            names = dict.fromkeys(dataset.reader.shard_of(sample_id) for sample_id in asked[0].ids if sample_id >= 0)
            listed = ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise HangError(
                f"{error}: a data worker is stuck on samples {asked[0].ids[:4].tolist()} ... of {listed}",
                fix="look at the storage; stream.timeout=SECONDS waits for longer",
            ) from None
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or str(error).startswith("Caught "):  # raised by our own code, here or there
                raise
            raise DataError(
                f"a data worker is lost: {type(error).__name__}: {error}",
                fix="stream.workers=0 shows the error itself; a worker that was killed may have run out of memory",
            ) from None


def _noted(schedule: Iterable[Draw], asked: "deque[Draw]") -> Iterator[Draw]:
    for draw in schedule:
        asked.append(draw)
        yield draw


def _patient(
    items: Iterator[MadeBatch | MppError], timeout: float, kill: Callable[[], None]
) -> Iterator[MadeBatch | MppError]:
    """Extend the short timeout of the loader, at which it looks for dead workers, to ``timeout`` seconds.

    It knows none while it takes a slot over from a worker: where that is stopped just then, ``kill`` ends the waiting.
    """
    asked, ended, expired = [math.inf], threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_TO_NOTICE):
            if time.monotonic() - asked[0] >= timeout:
                expired.set()
                return kill()

    threading.Thread(target=watch, name="patience", daemon=True).start()
    try:
        while True:
            asked[0] = min(asked[0], time.monotonic())
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                not_yet = str(error).startswith("DataLoader timed out")
                if expired.is_set() or (not_yet and time.monotonic() - asked[0] >= timeout):
                    raise TimeoutError(f"no batch within {timeout:g} seconds") from None
                if not not_yet:
                    raise
                continue
            asked[0] = math.inf
            yield item
    finally:
        ended.set()


def _ready(items: Any) -> int:
    """Return how many batches wait to be taken; the loader keeps that to itself."""
    out_of_turn = sum(len(task) == 2 for task in items._task_info.values())
    try:
        return int(items._data_queue.qsize()) + out_of_turn
    except NotImplementedError:  # macOS cannot count a queue between processes
        return out_of_turn


def _as_it_is(made: Any) -> Any:
    """Hand a batch over; the loader would make a tensor of each array, and send each by a file of its own."""
    return made


def _start_worker(_: int) -> None:
    """Begin a data worker; the loader calls it with the worker's number."""
    end_with_parent()


@contextmanager
def _running(
    loader: Iterable[MadeBatch | MppError],
) -> Iterator[tuple[Iterator[MadeBatch | MppError], Callable[[], None]]]:
    """Start a loader's workers, and kill them at the end; also give what kills them earlier."""
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = set(multiprocessing.active_children()) - others

    def kill() -> None:
        for worker in workers:
            worker.kill()

    def end() -> None:
        kill()
        for worker in workers:
            worker.join(5)

    atexit.register(end)  # after an error that nobody expected
    try:
        yield items, kill
    finally:
        end()
        atexit.unregister(end)
