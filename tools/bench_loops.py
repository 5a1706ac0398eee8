"""The loops that tools/bench_stream.py measures, the same for mpp and for its peers: batches alone, and a training run.

A contestant is a command ``SCRIPT NAME TASK``, TASK being the JSON of a :class:`Task`; it prints its figures as JSON.
Needs torch and timm, and nothing of mpp. ``images_BCHW``: B images, uint8, or floats that are normalised already.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bench_machine import processor_seconds
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What to measure: views of ``size`` pixels, ``count`` batches or training steps after ``warm`` that do not count.

    ``formats`` is the folder with the images in every format, ``model`` the ViT to train; without it there is none.
    """

    formats: str
    size: int
    workers: int
    batch: int
    warm: int
    count: int
    model: dict[str, int] | None = None


def run_contestant(contestants: Mapping[str, Callable[[Task], Batches]]) -> None:
    """Measure the contestant and task of the command line; print the figures."""
    task = Task(**json.loads(sys.argv[2]))
    batches = contestants[sys.argv[1]](task)
    figures = time_batches(batches, task) if task.model is None else time_training(batches, task)
    print(json.dumps(figures), flush=True)


def time_batches(batches: Batches, task: Task) -> dict[str, float]:
    """Take batches and throw them away; return images a second, and processor seconds of all processes an image."""
    for _ in range(task.warm):
        next(batches)
    used, began = processor_seconds(), time.perf_counter()
    images = 0
    for _ in range(task.count):
        images += len(next(batches)[0])
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    return {"images_per_second": images / seconds, "cpu_seconds_per_image": used / images}


def time_training(batches: Batches, task: Task) -> dict[str, float]:
    """Train a small ViT; return images a second, the share of the time spent waiting for data, seconds a step."""
    model, optimizer = _vit(task)
    waited, images = 0.0, 0
    for step in range(task.warm + task.count):
        if step == task.warm:
            first, used, waited, images = time.perf_counter(), processor_seconds(), 0.0, 0
        began = time.perf_counter()
        images_BCHW, labels_B = next(batches)
        waited, images = waited + time.perf_counter() - began, images + len(labels_B)
        loss = torch.nn.functional.cross_entropy(model(normalised(images_BCHW)), labels_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss), step
    seconds, used = time.perf_counter() - first, processor_seconds() - used
    speeds = {"images_per_second": images / seconds, "cpu_seconds_per_image": used / images}
    return speeds | {"stalled": waited / seconds, "seconds_per_step": seconds / task.count}


def normalised(images_BCHW: Tensor) -> Tensor:
    """Return uint8 images as floats of about unit variance; floats as they are."""
    if images_BCHW.is_floating_point():
        return images_BCHW
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return images_BCHW.float().sub_(mean).div_(std)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Go through a loader again and again."""
    while True:
        yield from loader


def _vit(task: Task) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    from timm.models.vision_transformer import VisionTransformer

    assert task.model is not None
    torch.manual_seed(0)
    width = task.model["width"]
    model = VisionTransformer(
        img_size=task.size,
        patch_size=task.model["patch"],
        embed_dim=width,
        depth=task.model["depth"],
        num_heads=max(1, width // 64),
        num_classes=task.model["classes"],
    )
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)
