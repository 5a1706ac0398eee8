"""The rate at which a device multiplies matrices, and how fast a task could go if it did nothing else."""

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.flops import flops_per_image
from mpp.model.tasks import TaskConfig, build_task

CPU_SIDE, GPU_SIDE = (
    2048,
    8192,
)  # of the square matrices: large enough for the full rate, done in a fraction of a second
_SECONDS = 0.25


def task_flops(task: TaskConfig, vit: VitConfig, num_classes: int | None) -> float:
    """Return the operations of a training step on one image, recomputation left out."""
    with torch.device("meta"):
        built = build_task(task, build_encoder(vit), num_classes=num_classes, seed=0)
    return flops_per_image(built, vit.image_size)


class Ceiling(NamedTuple):
    """What a process could do: its matrix rate, 10^12 FLOP/s, and the operations of a step on one image, 10^9."""

    matrix_tflops: float
    gflops_per_image: float

    @property
    def images_per_second(self) -> float:
        """Return the rate of a process that multiplies matrices all the time."""
        return 1e3 * self.matrix_tflops / self.gflops_per_image


def find_ceiling(task: TaskConfig, vit: VitConfig, num_classes: int | None, device: torch.device) -> Ceiling:
    """Measure the device of this process, and count what the task asks of it."""
    return Ceiling(matrix_rate(device) / 1e12, task_flops(task, vit, num_classes) / 1e9)


def matrix_rate(device: torch.device) -> float:
    """Return the operations a second of a product of matrices: in fp32 on a CPU, in bf16 on a GPU.

    Measured once in a process, by the threads that torch uses; the best of a fraction of a second.
    """
    return _measured(str(device), torch.get_num_threads())


@cache
def _measured(name: str, threads: int) -> float:
    device = torch.device(name)
    on_cpu = device.type == "cpu"
    side, kind, repeats = (CPU_SIDE, torch.float32, 1) if on_cpu else (GPU_SIDE, torch.bfloat16, 10)
    # Numbers, not zeros, which a GPU multiplies faster; and not from the generator that the run draws from.
    numbers = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, kind)
    out = torch.empty_like(numbers)
    torch.mm(numbers[:256], numbers, out=out[:256])  # starts the threads and the library
    best = _best_seconds(lambda: torch.mm(numbers, numbers, out=out), device, repeats)
    return 2 * float(side) ** 3 / best


def _best_seconds(multiply: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Return the shortest time of a product, over rounds of ``repeats`` for ``_SECONDS`` in all."""
    began, best = time.perf_counter(), float("inf")
    while time.perf_counter() - began < _SECONDS:
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            multiply()
        _wait_for(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
