"""Room on the disk for the checkpoints of a run: how large one will be, and whether those to come fit."""

import os
import resource
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mpp.errors import DiskError

_MOMENTS = 2 * 4  # bytes a weight: no optimizer of ours holds more than two numbers in fp32
_MASTER = 4  # bytes a weight: DeepSpeed's fp32 copy


def state_bytes(accelerator: Accelerator, *beside: nn.Module) -> int:
    """Return how many bytes a checkpoint of what is prepared will have, about and rather too many.

    Weights, two moments of each that is trained, and the weights of what is saved ``beside``; over all processes.
    """
    total = 0
    sharded = accelerator.state.deepspeed_plugin is not None
    for model in accelerator._models:
        for weight in model.parameters():
            number = getattr(weight, "ds_numel", weight.numel())  # ZeRO 3 leaves a process with its share
            per_weight = weight.element_size() + (_MASTER if sharded else 0)
            total += number * (per_weight + (_MOMENTS if weight.requires_grad else 0))
        total += sum(buffer.nbytes for buffer in model.buffers())
    return total + sum(int(value.nbytes) for module in beside for value in module.state_dict().values())


def check_room(folder: Path, size: int, *, kept: int, have: int) -> None:
    """Raise ``DiskError`` where the next checkpoints of ``size`` bytes do not fit below ``folder``.

    While one is written, ``kept`` others stand, of which there are ``have`` already; 0.2 of one is to spare. So at
    least 2.2 are asked for at the beginning of a run.
    """
    need = int(size * (kept + 1 - min(have, kept) + 0.2))
    free = free_bytes(folder)
    if free < need:
        raise DiskError(
            f"{folder}: no room for checkpoints of {size:,} bytes, {kept} are kept while the next is written: "
            f"{need:,} bytes are needed, {free:,} are free",
            fix="make room, or out=FOLDER on another disk",
        )


def free_bytes(folder: Path) -> int:
    """Return how many bytes the file system of ``folder``, or of what will hold it, has for this user."""
    statistics = os.statvfs(next(place for place in (folder, *folder.parents) if place.exists()))
    return statistics.f_bavail * statistics.f_frsize


def shortage(folder: Path, size: int) -> str:
    """Say what a checkpoint of ``size`` bytes needs and what there is, for the message of a write that failed."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    limited = f", and no file may have more than {limit:,} (ulimit -f)" if 0 <= limit < size else ""
    return f"about {size:,} bytes are needed, {free_bytes(folder):,} are free{limited}"
