"""mpp's side of tools/bench_stream.py: its training stream, its parts alone, and how it starts.

python tools/bench_stream_ours.py NAME TASK

Decoders and views alone work on bytes in memory, in this process and in one thread: the limit of what reads them.
"""

import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loops import Batches, Task, endless, normalised, run_contestant
from bench_machine import memory
from torch import Tensor

from mpp.shards.shardset import ShardSet, open_shards
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.views import ViewConfig, decode, train_view, view_draws

IN_MEMORY = 2_000  # images for those that work alone
START_BATCH, START_SIZE = 256, 8  # images of a batch, pixels


def main() -> None:
    """Measure what the command line names."""
    if sys.argv[1] == "start":
        print(json.dumps(start(**json.loads(sys.argv[2]))), flush=True)
    else:
        run_contestant(OURS)


def open_stream(
    shards: ShardSet, views: ViewConfig, size: int, batch: int, workers: int, start_step: int = 0
) -> TrainStream:
    """Open the stream of one process; all that is measured here opens it by this function."""
    return TrainStream(
        shards,
        views,
        (size, size),
        seed=0,
        global_batch=batch,
        micro_batch=batch,
        start_step=start_step,
        settings=StreamConfig(workers=workers),
    )


def view_of(size: int) -> ViewConfig:
    """Return the views that the peers have too, for ImageNet and for CIFAR."""
    return ViewConfig(crop="pad" if size < 64 else "random_resized")


def load_stream(task: Task, floats: bool = False) -> Batches:
    """Take the batches as they come, uint8, or normalise them in this process."""
    shards = open_shards(f"{task.formats}/shards", "train")
    for batch in open_stream(shards, view_of(task.size), task.size, task.batch, task.workers):
        assert batch.labels is not None
        yield normalised(batch.images) if floats else batch.images, batch.labels


def repeat_batch(task: Task) -> Batches:
    """Hand out one batch of the stream again and again: training without a loader."""
    first = next(load_stream(replace(task, workers=0)))
    return repeat(first)


def load_views(task: Task) -> Batches:
    """Decode and crop bytes in memory, without shards, workers and batches: nearly all that a worker has to do."""
    views, size = view_of(task.size), (task.size, task.size)
    ids = np.arange(IN_MEMORY)
    draws = view_draws(0, np.zeros_like(ids), ids)

    def view(number: int, image: bytes) -> Tensor:
        return torch.from_numpy(train_view(image, views, size, draws[number % IN_MEMORY]).copy())

    return _alone(task, view)


def decode_torchvision(task: Task) -> Batches:
    """Decode bytes in memory by libjpeg-turbo through torchvision, and do no more."""
    from torchvision.io import ImageReadMode

    rgb = ImageReadMode.RGB.value

    def by_torchvision(_: int, image: bytes) -> Tensor:
        stream = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        pixels: Tensor = torch.ops.image.decode_jpeg(stream, rgb)  # the function of the same name warns
        return pixels

    return _alone(task, by_torchvision)


def decode_simplejpeg(task: Task) -> Batches:
    """Decode bytes in memory by libjpeg-turbo through simplejpeg, as mpp does, and do no more."""
    return _alone(task, lambda _, image: decode(image))


def decode_pillow(task: Task) -> Batches:
    """Decode bytes in memory by Pillow, and do no more."""
    from PIL import Image

    return _alone(task, lambda _, image: Image.open(io.BytesIO(image)).convert("RGB"))


def _alone(task: Task, function: Callable[[int, bytes], Any]) -> Batches:
    """Call a function for every image; its results are thrown away and the batches are empty, but of the right size."""
    torch.set_num_threads(1)
    files = sorted(Path(task.formats, "images").glob("*/*.jpg"))
    step = max(1, len(files) // IN_MEMORY)
    images: Iterator[tuple[int, bytes]] = enumerate(endless([file.read_bytes() for file in files[::step]]))
    nothing = torch.empty(task.batch, 0)
    while True:
        for number, image in islice(images, task.batch):
            function(number, image)
        yield nothing, nothing


def start(folder: str, start_step: int, workers: int, batches: int) -> dict[str, Any]:
    """Return seconds to open a set, seconds from there to the first batch, and bytes of memory after all batches.

    ``worker`` is the memory of one worker, or of this process where there are none; ``main`` is that of this process.
    """
    began = time.perf_counter()
    shards = open_shards(folder, "train")
    opened = time.perf_counter()
    stream = open_stream(shards, ViewConfig(crop="none", flip=False), START_SIZE, START_BATCH, workers, start_step)
    next(stream)
    first = time.perf_counter()
    for _ in islice(stream, batches - 1):
        pass
    workers_now = [child.pid or 0 for child in multiprocessing.active_children()]
    figures = {"worker": memory((workers_now or [os.getpid()])[0]), "main": memory(os.getpid())}
    return {"open": opened - began, "first": first - opened, **figures}


OURS: dict[str, Callable[[Task], Batches]] = {
    "mpp": load_stream,
    "mpp, floats in the trainer": lambda task: load_stream(task, floats=True),
    "one batch": repeat_batch,
    "mpp views alone": load_views,
    "torchvision decode_jpeg alone": decode_torchvision,
    "simplejpeg alone": decode_simplejpeg,
    "Pillow alone": decode_pillow,
}

if __name__ == "__main__":
    main()
