"""Memory that a data worker shares with the main process, used for one batch after the other.

Fresh shared memory costs more than a resize: the kernel clears and maps every page of it, for each batch anew. So a
worker has a few slots which it fills in turn, and the main process copies a batch out of its slot before it asks for
another one.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Filled(NamedTuple):
    """Images in a slot: whose it is, which, in which turn of its worker; the slot itself where it is used first.

    Without a worker ``memory`` is the images themselves.
    """

    worker: int | None
    slot: int
    turn: int
    memory: Tensor | None


class Slots:
    """The slots of a worker: ``count`` of them, of images uint8 ``shape`` each."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._count, self._shape = count, shape
        self._memory: list[Tensor] = []
        self._turn = 0

    def take(self) -> tuple[Filled, Tensor]:
        """Return the next slot in turn, and its images to be filled; outside of a worker memory that is not shared."""
        worker = get_worker_info()
        if worker is None:
            images = torch.empty(self._shape, dtype=torch.uint8)
            return Filled(None, 0, 0, images), images
        slot, self._turn = self._turn % self._count, self._turn + 1
        new = slot == len(self._memory)
        if new:
            self._memory.append(torch.zeros(_words(self._shape), dtype=torch.int64).share_memory_())
        memory = self._memory[slot]
        memory[-1] = self._turn
        return Filled(worker.id, slot, self._turn, memory if new else None), _images(memory, self._shape)


class SlotReader:
    """The slots of all workers as the main process sees them; ``pinned`` says which memory batches are copied to."""

    def __init__(self, shape: tuple[int, ...], *, pinned: bool) -> None:
        self._shape, self._pinned = shape, pinned
        self._memory: dict[tuple[int, int], Tensor] = {}

    def copy(self, filled: Filled) -> Tensor:
        """Return the images [B, 3, H, W] of a batch in memory of their own."""
        if filled.worker is None:
            assert filled.memory is not None
            return filled.memory.pin_memory() if self._pinned else filled.memory
        place = (filled.worker, filled.slot)
        if filled.memory is not None:
            self._memory[place] = filled.memory
        images = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._pinned)
        # By numpy: torch would wake threads for it that then spin beside the data workers.
        np.copyto(images.numpy(), _images(self._memory[place], self._shape).numpy())
        assert int(self._memory[place][-1]) == filled.turn, "a slot was filled again before it was read"
        return images


def _words(shape: tuple[int, ...]) -> int:
    """Return the size of a slot in words of 8 bytes: the images, and the turn in which it was filled last."""
    return -(-_images_bytes(shape) // 8) + 1


def _images(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory.view(torch.uint8)[: _images_bytes(shape)].view(shape)


def _images_bytes(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
