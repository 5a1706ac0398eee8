"""Batches onto the device: on a GPU each is copied while the one before it is in use."""

from collections.abc import Iterator

import torch

from mpp.stream.batches import Batch


class OnDevice(Iterator[Batch]):
    """The batches of an iterator on ``device``.

    On a GPU the copy of the next batch, from pinned memory, runs on a stream of its own beside the computation.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: Batch | None = None

    def __next__(self) -> Batch:
        if self._copying is None:
            return to_device(next(self._batches), self._device)
        if self._ahead is None:
            self._ahead = self._copy(self._copying)
        batch, computing = self._ahead, torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(computing)  # its memory is not given to a later copy before it was used
        try:
            self._ahead = self._copy(self._copying)
        except StopIteration:
            self._ahead = None  # the batches have ended, and say so again when asked for the next
        return batch

    def _copy(self, copying: torch.cuda.Stream) -> Batch:
        batch = next(self._batches)
        with torch.cuda.stream(copying):
            return to_device(batch, self._device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device."""
    images, ids, epochs = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.ids, batch.epochs))
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return Batch(images, labels, ids, epochs)
