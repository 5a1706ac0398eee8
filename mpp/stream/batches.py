"""What a data worker does: the ids of a micro-batch become one uint8 tensor, bad samples replaced where allowed.

Shapes: B images of a micro-batch, H and W the height and width in pixels.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from mpp.errors import MppError
from mpp.stream.augment import augment_draws
from mpp.stream.mixture import Draw
from mpp.stream.order import Ints
from mpp.stream.reader import BadSample, Sample, ShardReader
from mpp.stream.slots import Filled, Slots
from mpp.stream.stall import Cost, Skip
from mpp.stream.storage import Traffic
from mpp.stream.views import ViewConfig, eval_view, train_view, view_draws

PADDING = -1
NEIGHBOURS = 8  # samples of the same shard that are tried in the place of one that cannot be used


class Batch(NamedTuple):
    """A micro-batch: images uint8 [B, 3, H, W]; labels (or None), sample ids and epochs of the views int64 [B].

    In evaluation the last batch is filled up with black images whose id and label are -1.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    epochs: Tensor


class MadeBatch(NamedTuple):
    """What a worker hands over: images in a slot; labels, ids and epochs int64 [B]."""

    images: Filled
    labels: Ints | None
    ids: Ints
    epochs: Ints
    cost: Cost


class Batches(Dataset[MadeBatch | MppError]):
    """Micro-batches by what is drawn for them; evaluation views where ``seed`` is None; errors are returned.

    All have ``count`` samples, and a worker has ``slots`` for them. With ``replace`` a bad sample gives way to the next
    usable one of its shard, the same in every process.
    """

    def __init__(
        self,
        reader: ShardReader,
        views: ViewConfig,
        size: tuple[int, int],
        *,
        count: int,
        slots: int,
        seed: int | None,
        replace: bool,
        threads: int,
    ) -> None:
        self.reader, self.views, self.size, self.seed = reader, views, size, seed
        self.replace, self.threads = replace, threads
        self.shape = (count, 3, *size)
        self._slots = Slots(slots, self.shape)

    def __getitem__(self, draw: Draw) -> MadeBatch | MppError:
        try:
            return self._make(draw)
        except MppError as error:
            return error
        except Exception as error:
            error.add_note(f"in a batch that begins with {self.reader.where(int(draw.ids[0]))}")
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def _make(self, draw: Draw) -> MadeBatch:
        self.reader.storage.traffic = traffic = Traffic()
        ids, rows = draw.ids.copy(), np.flatnonzero(draw.ids != PADDING)
        filled, images = self._slots.take()
        labels, skipped = np.full(len(ids), PADDING, np.int64), list[Skip]()
        if len(rows) < len(ids):
            images.zero_()
        pixels, began = images.numpy(), time.perf_counter()
        samples = self.reader.read_all(ids[rows])
        read, draws = time.perf_counter(), self.draws(draw.epochs, draw.ids)
        jobs = [
            (pixels[row], sample, None if draws is None else draws[row])
            for row, sample in zip(rows, samples, strict=True)
        ]
        for row, sample, error in zip(rows, samples, self._fill_all(jobs), strict=True):
            if error is not None:
                bad = self._bad(int(ids[row]), sample, error)
                ids[row], sample = self._instead(pixels[row], int(ids[row]), int(draw.epochs[row]), bad)
                skipped.append(Skip(int(draw.ids[row]), int(ids[row]), str(bad).partition("\n")[0]))
            assert isinstance(sample, Sample)
            labels[row] = PADDING if sample.label is None else sample.label
        cost = Cost(
            images=len(rows),
            bytes=traffic.bytes,
            read_seconds=read - began,
            view_seconds=time.perf_counter() - read,
            retries=traffic.retries,
            cache_hits=traffic.hits,
            cache_misses=traffic.misses,
            skipped=tuple(skipped),
        )
        return MadeBatch(filled, labels if self.reader.labelled else None, ids, draw.epochs, cost)

    def draws(self, epochs: Ints, ids: Ints) -> NDArray[np.float64] | None:
        """Return the numbers [B, n] that decide the train views, None for evaluation views."""
        if self.seed is None:
            return None
        augment = augment_draws(self.seed, epochs, ids, self.views.augment)
        return np.hstack([view_draws(self.seed, epochs, ids), augment])

    def _fill_all(self, jobs: list[tuple[Any, ...]]) -> list[Exception | None]:
        """Do the jobs of :meth:`_fill`, in threads where there are several; decoding does not hold the GIL."""
        if self.threads <= 1:
            return [self._fill(*job) for job in jobs]
        return list(self._pool.map(lambda job: self._fill(*job), jobs))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)

    def _fill(
        self, target: NDArray[np.uint8], sample: Sample | BadSample, draws: NDArray[np.float64] | None
    ) -> Exception | None:
        """Write the view of a sample into ``target`` [3, H, W]; return what is wrong with it, if anything."""
        if isinstance(sample, BadSample):
            return sample
        try:
            if draws is None:
                target[:] = eval_view(sample.image, self.views, self.size)
            else:
                target[:] = train_view(sample.image, self.views, self.size, draws)
            return None
        except Exception as error:  # decoders raise many kinds for damaged images
            return error

    def _bad(self, sample_id: int, sample: Sample | BadSample, error: Exception) -> BadSample:
        """Say of which sample an error is."""
        if isinstance(sample, BadSample):
            return sample
        why = str(error)
        if isinstance(error, UnidentifiedImageError):  # which gives no more than an address in memory
            why = f"it begins with {bytes(sample.image[:16])!r}"
        reason = f"{self.reader.where(sample_id)}: the image cannot be decoded: {type(error).__name__}: {why}"
        return BadSample(reason, fix=self.reader.fix(sample_id))

    def _instead(
        self, target: NDArray[np.uint8], sample_id: int, epoch: int, bad: BadSample
    ) -> tuple[int, Sample | BadSample]:
        """Fill ``target`` with the next usable sample; return its id and itself, raise ``bad`` where there is none."""
        if not self.replace:
            raise bad
        for distance in range(1, NEIGHBOURS + 1):
            other = self.reader.neighbour(sample_id, distance)
            (sample,) = self.reader.read_all(np.array([other], np.int64))
            draws = self.draws(np.array([epoch], np.int64), np.array([other], np.int64))
            if self._fill(target, sample, None if draws is None else draws[0]) is None:
                return other, sample
        raise bad
