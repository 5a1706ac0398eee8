"""Count the floating-point operations of a task's step without computing it (torch's formulas, on the meta device)."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mpp.stream.batches import Batch


def flops_per_image(task: nn.Module, image_size: tuple[int, int]) -> float:
    """Return the operations of forward and backward of one image, what is computed a second time left out.

    ``task`` is on the meta device: build it under ``torch.device("meta")``. A multiplication and an addition count
    as two, and matrix products and convolutions alone count, as is usual. The figure is the same for every device.
    """
    task.train()
    with _FlopCounter() as counter:
        loss = task(blank_batch(1, image_size, "meta")).loss
        counter.in_backward = True
        loss.backward()
    task.zero_grad()
    return float(counter.total)


def blank_batch(count: int, image_size: tuple[int, int], device: str) -> Batch:
    """Return a batch of ``count`` black images of class 0."""
    images = torch.zeros(count, 3, *image_size, dtype=torch.uint8, device=device)
    zeros = torch.zeros(count, dtype=torch.int64, device=device)
    return Batch(images, zeros, zeros, zeros)


class _FlopCounter(TorchDispatchMode):
    """Adds up the operations. ``FlopCounterMode`` would add those of recomputed activations too.

    The backward pass runs without gradients, what it recomputes of the forward pass with them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None and not (self.in_backward and torch.is_grad_enabled()):
            self.total += count(*args, **kwargs, out_val=out)
        return out
