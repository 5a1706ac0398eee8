"""Batches for a rank: the endless training stream that begins at any step, and the finite evaluation batches.

One item of the underlying DataLoader is a whole micro-batch, made by one worker as one uint8 tensor; which samples
it holds is decided in this process (order.py), so neither the number of workers nor a restart changes anything.

Shapes: B images of a micro-batch, H and W the height and width in pixels, N samples of a split.
"""

import atexit
import multiprocessing
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpp.errors import DataError, MppError
from mpp.processes import end_with_parent, worker_context
from mpp.shards.shardset import ShardSet
from mpp.stream.order import EpochOrder, Ints, check_divides, count_steps, rank_positions
from mpp.stream.reader import ShardReader
from mpp.stream.views import ViewConfig, eval_view, train_view, view_draws

PADDING = -1
SECONDS_TO_NOTICE = 1.0


class Batch(NamedTuple):
    """A micro-batch: images uint8 [B, 3, H, W], labels int64 [B] or None, sample ids int64 [B], epoch of its views.

    In evaluation the last batch is filled up with black images whose id and label are -1.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    epoch: int


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands after a global step: epoch, samples seen by all ranks in the run, and of which shards."""

    epoch: int
    samples_seen: int
    fingerprint: str


class _Views(Dataset[Batch | MppError]):
    """Micro-batches by (epoch, ids), evaluation views where ``seed`` is None; errors are returned, not raised."""

    def __init__(self, reader: ShardReader, views: ViewConfig, size: tuple[int, int], seed: int | None) -> None:
        self.reader, self.views, self.size, self.seed = reader, views, size, seed

    def __getitem__(self, index: tuple[int, Ints]) -> Batch | MppError:
        epoch, ids = index
        images = torch.zeros(len(ids), 3, *self.size, dtype=torch.uint8)
        labels = np.full(len(ids), PADDING, np.int64)
        draws = None if self.seed is None else view_draws(self.seed, epoch, ids)
        try:
            for row, sample_id in enumerate(ids.tolist()):
                if sample_id != PADDING:
                    image, label = self.reader.read(sample_id)
                    images[row] = self._view(image, None if draws is None else draws[row], sample_id)
                    labels[row] = PADDING if label is None else label
        except MppError as error:
            return error
        return Batch(images, torch.from_numpy(labels) if self.reader.labelled else None, torch.from_numpy(ids), epoch)

    def _view(self, image: bytes, draws: np.ndarray[tuple[int], np.dtype[np.float64]] | None, sample_id: int) -> Tensor:
        try:
            if draws is None:
                return eval_view(image, self.views, self.size)
            return train_view(image, self.views, self.size, draws)
        except Exception as error:  # Pillow raises many kinds for damaged images
            raise DataError(
                f"{self.reader.where(sample_id)}: the image cannot be decoded: {type(error).__name__}: {error}",
                fix=f"mpp verify {self.reader.shards.root} full=true",
            ) from None


class TrainStream(Iterator[Batch]):
    """The endless micro-batches of one rank from global step ``start_step`` on.

    A global step has ``global_batch / world / micro_batch`` of them. ``waited`` is the seconds spent waiting for
    batches so far. Raises ``DataError`` naming a sample that cannot be read.
    """

    def __init__(
        self,
        shards: ShardSet,
        views: ViewConfig,
        size: tuple[int, int],
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start_step: int = 0,
        subset: Ints | None = None,
        timeout: float = 180,
    ) -> None:
        """Open the stream: ``size`` is (H, W), ``subset`` the ids to train on, ``timeout`` the seconds for a batch.

        Raises ``ConfigError`` where the batches do not divide, ``DataError`` where the samples do not fill
        one global batch.
        """
        reader = ShardReader(shards)
        self._subset = None if subset is None else np.asarray(subset, np.int64)
        sizes = [shard.samples for shard in shards.shards] if self._subset is None else [len(self._subset)]
        self._order = EpochOrder(sizes, seed)
        self.steps_per_epoch = count_steps(self._order.num_samples, global_batch)
        self.waited = 0.0
        self._global_batch, self._fingerprint = global_batch, shards.fingerprint
        schedule = self._schedule(start_step, micro_batch, rank, world)
        check_divides(global_batch, world, micro_batch)
        self._batches = _batches(_Views(reader, views, size, seed), schedule, workers, timeout)

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - begin
        return batch

    def state(self, step: int) -> StreamState:
        """Return the state before global step ``step``; ``samples_seen / global_batch`` is the step to begin at."""
        return StreamState(step // self.steps_per_epoch, step * self._global_batch, self._fingerprint)

    def close(self) -> None:
        """End the workers; the stream gives no more batches."""
        self._batches.close()

    def _schedule(self, step: int, micro_batch: int, rank: int, world: int) -> Iterator[tuple[int, Ints]]:
        while True:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            ids = self._order.ids(epoch, rank_positions(step_in_epoch, self._global_batch, rank, world))
            ids = ids if self._subset is None else self._subset[ids]
            for first in range(0, len(ids), micro_batch):
                yield epoch, ids[first : first + micro_batch]
            step += 1


def evaluation_batches(
    shards: ShardSet,
    views: ViewConfig,
    size: tuple[int, int],
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    subset: Ints | None = None,
    timeout: float = 180,
) -> Iterator[Batch]:
    """Return the evaluation views of every example once over all ranks, in equally many batches of equal size a rank.

    Position p of the split (or of ``subset``) is seen by rank p % world; places beyond the end have id and label -1.
    ``batch`` is the most images of a batch, ``timeout`` the seconds one may take. Raises ``DataError`` naming a sample
    that cannot be read.
    """
    ids = np.arange(shards.samples, dtype=np.int64) if subset is None else np.asarray(subset, np.int64)
    own = -(-len(ids) // world)
    count = -(-own // batch)
    each = -(-own // max(1, count))
    padded = np.full(count * each * world, PADDING, np.int64)
    padded[: len(ids)] = ids
    schedule = [(0, rows) for rows in padded[rank::world].reshape(count, each)]
    return _batches(_Views(ShardReader(shards), views, size, None), schedule, min(workers, count), timeout)


def _batches(dataset: _Views, schedule: Iterable[tuple[int, Ints]], workers: int, timeout: float) -> Generator[Batch]:
    """Make the scheduled batches, ahead of time where there are workers; a lost or stuck worker is a ``DataError``."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=schedule,
        num_workers=workers,
        timeout=min(timeout, SECONDS_TO_NOTICE) if workers else 0,
        multiprocessing_context=worker_context("mpp.stream.loader") if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws from, and so changes, the global generator
    )
    with _running(loader) if workers else nullcontext(iter(loader)) as items:
        try:
            for item in _patient(items, timeout):
                if isinstance(item, MppError):
                    raise item
                yield item
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or str(error).startswith("Caught "):  # raised by our own code, here or there
                raise
            raise DataError(
                f"a data worker is lost or stuck: {type(error).__name__}: {error}",
                fix="workers=0 shows the error itself; a worker that was killed may have run out of memory",
            ) from None


def _patient(items: Iterator[Batch | MppError], timeout: float) -> Iterator[Batch | MppError]:
    """Extend the short timeout of the loader, at which it looks for dead workers, to ``timeout`` seconds."""
    asked = time.monotonic()
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            if time.monotonic() - asked >= timeout:
                raise TimeoutError(f"no batch within {timeout:g} seconds") from None
            continue
        yield item
        asked = time.monotonic()


def _start_worker(_: int) -> None:
    """Begin a data worker; the loader calls it with the worker's number."""
    end_with_parent()


@contextmanager
def _running(loader: Iterable[Batch | MppError]) -> Iterator[Iterator[Batch | MppError]]:
    """Start a loader's workers, and kill them at the end."""
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = set(multiprocessing.active_children()) - others

    def end() -> None:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(5)

    atexit.register(end)  # after an error that nobody expected
    try:
        yield items
    finally:
        end()
        atexit.unregister(end)
