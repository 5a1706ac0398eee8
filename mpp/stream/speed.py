"""How fast a stream is without a model, stage by stage: what a core can do, and what bounds it."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import torch

from mpp.errors import MppError
from mpp.stream.batches import Batches
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.mixture import Draw, Mixture
from mpp.stream.reader import Sample, ShardReader
from mpp.stream.views import ViewConfig, decode, train_view

Item = TypeVar("Item")
WARM_UP = 4  # batches of the stream that are not timed
BATCHES = 32  # whose samples are used again and again


@dataclass(frozen=True)
class Speed:
    """Seconds an image.

    ``read``, ``decode``, ``view`` (crop, resize, flip) and ``batch`` (into one tensor) are those of one core, and add
    up to what a worker needs; ``hand_off`` is processor time of the main process; ``stream`` is the time from one image
    to the next with all ``workers``.
    """

    read: float
    decode: float
    view: float
    batch: float
    hand_off: float
    stream: float
    workers: int

    @property
    def worker(self) -> float:
        """Return the seconds that a worker needs for an image."""
        return self.read + self.decode + self.view + self.batch

    @property
    def bound(self) -> str:
        """Return the stage that bounds the stream."""
        if self.workers and self.hand_off > self.worker / self.workers:
            return "hand-off"
        stages = {"read": self.read, "decode": self.decode, "view": self.view, "batch": self.batch}
        return max(stages, key=lambda name: stages[name])


def measure_speed(
    shards: Mixture, views: ViewConfig, size: tuple[int, int], *, batch: int, settings: StreamConfig, seconds: float
) -> Speed:
    """Measure train views of ``size`` (H, W) in batches of ``batch``, for about ``seconds`` a stage.

    Every stage is timed alone on the same samples, in this process with one thread, and then the stream with its
    workers. Raises ``DataError`` as the stream does.
    """
    cache = settings.node_cache() if shards.remote else None
    reader = ShardReader(*shards.sets, cache=cache)
    made = Batches(reader, views, size, count=batch, slots=1, seed=0, replace=False, threads=1)
    drawn = shards.order(0, batch).draw(range(min(BATCHES, max(1, shards.samples // batch))), 0, 1)
    draws = [
        Draw(drawn.ids[first : first + batch], drawn.epochs[first : first + batch])
        for first in range(0, len(drawn.ids), batch)
    ]
    for draw in draws:  # what cannot be used is said before anything is timed
        if isinstance(batch_or_error := made[draw], MppError):
            raise batch_or_error
    samples = [sample for draw in draws[:8] for sample in reader.read_all(draw.ids) if isinstance(sample, Sample)]
    rows = made.draws(drawn.epochs, drawn.ids)
    assert rows is not None
    jobs = list(zip(samples, rows, strict=False))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        read = _timed(lambda draw: reader.read_all(draw.ids), draws, seconds) / batch
        decoded = _timed(lambda job: decode(job[0].image), jobs, seconds)
        viewed = _timed(lambda job: train_view(job[0].image, views, size, job[1]), jobs, seconds)
        whole = _timed(made.__getitem__, draws, seconds) / batch
    finally:
        torch.set_num_threads(threads)
    arriving, hand_off = _stream_speed(shards, views, size, batch, settings, seconds)
    # What a crop spares the decoder, by decoding at a part of the size, is taken off decoding.
    decoded, view = min(decoded, viewed), max(0.0, viewed - decoded)
    return Speed(read, decoded, view, max(0.0, whole - read - viewed), hand_off, arriving, settings.workers)


def _stream_speed(
    shards: Mixture, views: ViewConfig, size: tuple[int, int], batch: int, settings: StreamConfig, seconds: float
) -> tuple[float, float]:
    """Return the time from one image to the next, and the main process's processor time an image."""
    stream = TrainStream(shards, views, size, seed=0, global_batch=batch, micro_batch=batch, settings=settings)
    with closing(stream):
        for _ in range(WARM_UP * max(1, settings.workers)):
            next(stream)
        began, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < 2 * seconds or count < WARM_UP:
            next(stream)
            count += 1
        elapsed, used = time.perf_counter() - began, time.process_time() - used
    return elapsed / count / batch, (used / count / batch if settings.workers else 0.0)


def _timed(action: Callable[[Item], object], items: Sequence[Item], seconds: float) -> float:
    """Return the seconds that ``action`` takes for an item, after one round over the items that is not timed."""
    for item in items[: len(items) // 4 + 1]:
        action(item)
    began = time.perf_counter()
    for count, item in enumerate(itertools.cycle(items), 1):
        action(item)
        if time.perf_counter() - began > seconds and count >= len(items):
            break
    return (time.perf_counter() - began) / count
