"""Count the memory of a task's step without allocating any: the step runs on fake tensors, which have only shapes.

What is counted is every tensor that is alive at once, so that activation checkpointing, a last block computed in
part or small micro-batches show without being known here. Beside it a real step takes what kernels use inside.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpp.model.flops import blank_batch

# fp32; bf16 by autocast with weights in fp32, as Accelerate does; or weights and all in bf16, as DeepSpeed does
Numbers = Literal["fp32", "autocast", "bf16"]


class StepMemory:
    """What the weights, the optimizer and a forward and backward pass of a task take, in bytes.

    ``build`` makes the task; it is called under ``torch.device("meta")``.
    """

    def __init__(self, build: Callable[[], nn.Module], image_size: tuple[int, int], numbers: Numbers) -> None:
        self._image_size, self._numbers = image_size, numbers
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            task = build().to(torch.bfloat16 if numbers == "bf16" else torch.float32)
        with self._fake:
            # On "cpu": attention in blocks, as on a GPU, while on the meta device it would keep every weight.
            self.task = task.to_empty(device="cpu").train()
        self.activations = cache(self._activations)

    def _activations(self, batch: int) -> int:
        """Return the most that is alive at once of a step on ``batch`` images, beside weights and their gradients."""
        with self._fake:
            for parameter in self.task.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            return peak_bytes(self.task, self._image_size, batch, autocast=self._numbers == "autocast")

    def optimizer(self, build: Callable[[nn.Module], Optimizer]) -> int:
        """Return what an optimizer keeps: it takes one step on the fake tensors."""
        with self._fake:
            for parameter in self.task.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            optimizer = build(self.task)
            optimizer.step()
        return storage_bytes(tree_leaves(list(optimizer.state.values())))

    def largest_batch(self, room: float) -> int:
        """Return how many images at most make a step that takes ``room`` bytes for activations; 0 where none does."""
        if self.activations(1) > room:
            return 0
        low, high = 1, 64
        while self.activations(high) <= room:  # on along the line through these two
            low, high = high, 1 + self._on_the_line(low, high, room)
        while high - low > 1:  # `low` images fit, `high` do not
            guess = min(max(low + 1, self._on_the_line(low, high, room)), high - 1)
            low, high = (guess, high) if self.activations(guess) <= room else (low, guess)
        return low

    def _on_the_line(self, low: int, high: int, room: float) -> int:
        """Return the images that take ``room`` where memory grows as from ``low`` to ``high`` images."""
        each = (self.activations(high) - self.activations(low)) / (high - low)
        return low + math.floor((room - self.activations(low)) / each)


def peak_bytes(task: nn.Module, image_size: tuple[int, int], batch: int, *, autocast: bool = False) -> int:
    """Return the most bytes alive at once in forward and backward, beside the task's own and its gradients'.

    Runs the step, on the device "cpu": really, or under a ``FakeTensorMode`` on its tensors.
    """
    images = blank_batch(batch, image_size, "cpu")
    own = [*task.parameters(), *task.buffers(), *(p.grad for p in task.parameters() if p.grad is not None)]
    precision: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with _LiveBytes(own) as live:
        with precision:
            loss = task(images).loss
        loss.backward()
    return int(live.peak) + storage_bytes(images)


def storage_bytes(values: Iterable[Any]) -> int:
    """Return the bytes of the memory behind tensors, shared memory counted once."""
    storages = {id(storage): storage for value in values if isinstance(value, Tensor) for storage in [_storage(value)]}
    return sum(storage.nbytes() for storage in storages.values())


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on, until they are gone; ``peak`` is the most at once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = [_storage(tensor) for tensor in known]
        self._alive: dict[int, Any] = {id(storage): None for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(_storage(value))
        return out

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def gone(reference: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
