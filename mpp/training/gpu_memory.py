"""What a GPU's memory holds in training, in bytes, under DDP and DeepSpeed's ZeRO stages; computed, not allocated.

Under DDP weights, gradients and optimizer are in fp32, and products in bf16 by autocast. DeepSpeed keeps weights and
gradients in bf16 and, divided over the GPUs from stage 1 on, an fp32 copy of the weights and the optimizer's states;
stage 2 divides gradients too, stage 3 weights too (ZeRO, arXiv:1910.02054, section 5).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from mpp.model.memory import StepMemory

# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), elements: gradients that are reduced at once, and weights
# that stage 3 holds whole at once.
_REDUCE_BUCKET, _LIVE_WEIGHTS = 5 * 10**8, 10**9


class Held(NamedTuple):
    """Bytes that stay whatever the micro-batch is; ``main`` beside the GPU, in the machine's memory."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    main: int = 0


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU by what they hold, for one way to divide the training.

    ``main_memory`` lies beside it, in the machine. ``largest_micro_batch`` fits; ``micro_batch`` also divides a GPU's
    share of the global batch. 0: not even one image fits.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    total: int
    main_memory: int
    largest_micro_batch: int
    micro_batch: int


class MemoryPlan:
    """A task and its optimizer on a number of GPUs, in bf16 (``half``) or fp32; ``averaged``: beside an EMA."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        image_size: tuple[int, int],
        optimizer: Callable[[nn.Module], Optimizer],
        *,
        gpus: int,
        half: bool,
        averaged: bool = False,
    ) -> None:
        self._build, self._image_size, self._gpus, self._half = build, image_size, gpus, half
        self._averaged = averaged
        self.step = StepMemory(build, image_size, "autocast" if half else "fp32")
        parameters = list(self.step.task.parameters())
        self.parameters = sum(parameter.numel() for parameter in parameters)
        self.trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        self._states = self.step.optimizer(optimizer)

    def ways(self, stage: int, *, micro: int, share: int, room: float) -> Iterator[GpuMemory]:
        """Yield a GPU's memory under a ZeRO stage (0: DDP), from stage 2 on also with what can be in main memory there.

        ``micro`` images are a micro-batch, ``share`` those of a step on one GPU; ``room`` bytes can be used.
        """
        if stage == 0:
            name = "DDP" if self._gpus > 1 else "one GPU"
            yield _fitted(name, self.step, self._undivided(), micro=micro, share=share, room=room)
            return
        step, held = self._zero_step, self._divided(stage)
        yield _fitted(f"ZeRO {stage}", step, held, micro=micro, share=share, room=room)
        if stage >= 2:
            away = _offloaded(held, stage)
            yield _fitted(f"ZeRO {stage}, offload", step, away, micro=micro, share=share, room=room)

    def _undivided(self) -> Held:
        weights, gradients = 4 * self.parameters, 4 * self.trained
        buckets = gradients if self._gpus > 1 else 0  # where DDP holds all gradients once more
        return Held(weights, gradients, self._states, buckets + (weights if self._averaged else 0))

    def _divided(self, stage: int) -> Held:
        size, gpus = (2 if self._half else 4), self._gpus
        weights, gradients = size * self.parameters, size * self.trained
        buffers = size * _REDUCE_BUCKET + (weights if self._averaged else 0)
        if stage == 3:
            buffers += min(weights, size * _LIVE_WEIGHTS)
        return Held(
            weights=weights // gpus if stage == 3 else weights,
            gradients=gradients // gpus if stage >= 2 else gradients,
            optimizer=(4 * self.trained + self._states) // gpus,
            buffers=buffers,
        )

    @cached_property
    def _zero_step(self) -> StepMemory:
        return StepMemory(self._build, self._image_size, "bf16") if self._half else self.step


def _offloaded(held: Held, stage: int) -> Held:
    """Return what is left when optimizer and gradients, under stage 3 weights too, are in main memory."""
    weights = held.weights if stage == 3 else 0
    away = weights + held.gradients + held.optimizer
    return Held(held.weights - weights, 0, 0, held.buffers, away)


def _fitted(name: str, step: StepMemory, held: Held, *, micro: int, share: int, room: float) -> GpuMemory:
    fixed = held.weights + held.gradients + held.optimizer + held.buffers
    activations, largest = step.activations(micro), step.largest_batch(room - fixed)
    return GpuMemory(
        name,
        held.weights,
        held.gradients,
        held.optimizer,
        held.buffers,
        activations=activations,
        total=fixed + activations,
        main_memory=held.main,
        largest_micro_batch=largest,
        micro_batch=next((size for size in range(min(largest, share), 0, -1) if share % size == 0), 0),
    )
