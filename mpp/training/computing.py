"""How a step is computed, where that changes its speed and its memory, and its result by no more than rounding."""

import ctypes
import sys

import torch
from pydantic import Field
from torch import nn

from mpp.config import config
from mpp.model.mixing import Mixing
from mpp.model.vit import Vit

# More images at once than have so many bytes of tokens, in fp32, in a layer make no step on a CPU faster, and need
# more memory. A step of 64 images of ViT-Ti/16 at 224 pixels took 3.94 s by 8, 3.81 by 16, 3.56 by 32, 3.54 by 64.
# The same on every CPU, so that micro-batches, and with them rounding and stochastic depth, are the same on all.
_BYTES_AT_ONCE = 6 << 20

# glibc's mallopt: blocks up to M_MMAP_THRESHOLD come from the heap, which is given back above M_TRIM_THRESHOLD.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT = (1 << 31) - 1
_LARGEST_BLOCK = 1 << 30


@config
class Compute:
    """How the network is computed; results are the same but for rounding."""

    compile: bool = Field(False, description="torch.compile; it takes minutes before the first step")
    checkpointing: int = Field(
        0, ge=0, description="every n-th block keeps only its input, and is computed twice; 1: all blocks; 0: none"
    )


def set_up(task: nn.Module, settings: Compute) -> None:
    """Have a task, not prepared yet, computed as ``settings`` say; names of weights stay as they are."""
    vit = getattr(task, "vit", None)
    if isinstance(vit, Vit):
        vit.recompute_every = settings.checkpointing
    if settings.compile:
        task.compile()
    keep_memory()


def images_at_once(vit: nn.Module, device: torch.device, *, mixing: Mixing | None = None) -> int | None:
    """Return how many images a forward pass on a CPU should have; None: as many as there are.

    None on other devices, and with mixing, which takes an image's partner from its micro-batch.
    """
    mixes = mixing is not None and bool(mixing.mixup or mixing.cutmix)
    if device.type != "cpu" or mixes or not isinstance(vit, Vit):
        return None
    return max(1, _BYTES_AT_ONCE // (vit.num_patches * vit.width * 4))


def keep_memory() -> None:
    """Let glibc keep freed memory: it is else given back and faulted in again, page by page, in every step."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
            mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
