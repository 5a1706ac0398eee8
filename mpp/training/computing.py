"""How a step is computed, where that changes its speed and its memory, and its result by no more than rounding."""

import ctypes
import sys
from math import gcd
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from pydantic import Field
from torch import nn

from mpp.config import config
from mpp.model.tasks import Classification
from mpp.model.vit import Vit

# A step on a CPU is fastest where a layer's activations stay in its cache; the same number on every CPU, so that
# micro-batches, and with them rounding and stochastic depth, do not depend on the machine.
_CACHED_BYTES = 1 << 20

# glibc's mallopt: blocks up to M_MMAP_THRESHOLD come from the heap, which is given back above M_TRIM_THRESHOLD.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT = (1 << 31) - 1
_LARGEST_BLOCK = 1 << 30


@config
class Compute:
    """How the network is computed; results are the same but for rounding."""

    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile; auto: on a GPU, alone or under DDP; minutes before the first step"
    )
    checkpointing: int = Field(
        0, ge=0, description="every n-th block keeps only its input, and is computed twice; 1: all blocks; 0: none"
    )


def set_up(task: nn.Module, settings: Compute, accelerator: Accelerator) -> None:
    """Have a task, not prepared yet, computed as ``settings`` say; names of weights stay as they are."""
    vit = getattr(task, "vit", None)
    if isinstance(vit, Vit):
        vit.recompute_every = settings.checkpointing
    alone = accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU)
    if settings.compile is True or (settings.compile == "auto" and accelerator.device.type == "cuda" and alone):
        task.compile()
    keep_memory()


def micro_batch_of(task: nn.Module, micro_batch: int | None, share: int, device: torch.device) -> int | None:
    """Return the images of a forward pass: those asked for, else as many as a CPU's cache holds; None: the ``share``.

    ``share`` is what a process has of a global batch. Mixing takes its partners from a micro-batch, so it is not cut.
    """
    mixes = isinstance(task, Classification) and bool(task.mixing.mixup or task.mixing.cutmix)
    vit = getattr(task, "vit", None)
    if micro_batch is not None or device.type != "cpu" or mixes or not isinstance(vit, Vit):
        return micro_batch
    return cached_images(vit.num_patches, vit.width, share)


def cached_images(num_patches: int, width: int, share: int) -> int:
    """Return the largest power of two that divides ``share`` and whose tokens, in fp32, take a cache's worth."""
    images = max(1, _CACHED_BYTES // (num_patches * width * 4))
    return gcd(share, 1 << (images.bit_length() - 1))


def keep_memory() -> None:
    """Let glibc keep freed memory: it is else given back and faulted in again, page by page, in every step."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
            mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
