"""Slots are used again and again, and what was copied out of them stays; one that is filled too early is noticed."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mpp.processes import worker_context
from mpp.stream.slots import Filled, SlotReader, Slots

SHAPE = (2, 3, 5, 7)  # no multiple of eight bytes


class Numbers(Dataset[Filled]):
    """Batches full of their own number."""

    def __init__(self, slots: int) -> None:
        self.slots = Slots(slots, SHAPE)

    def __getitem__(self, number: int) -> Filled:
        filled, images = self.slots.take()
        images.fill_(number)
        return filled


def filled_batches(slots: int, workers: int, ahead: int = 2) -> DataLoader[Filled]:
    return DataLoader(
        Numbers(slots),
        batch_size=None,
        sampler=range(30),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=as_it_is,
        multiprocessing_context=worker_context() if workers else None,
    )


def as_it_is(filled: Filled) -> Filled:
    return filled


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_copied_batches_stay_what_they_were_though_slots_are_few(workers: int) -> None:
    reader = SlotReader(SHAPE, pinned=False)
    batches = [reader.copy(filled) for filled in filled_batches(3, workers)]
    assert [batch.unique().tolist() for batch in batches] == [[number] for number in range(30)]
    assert all(batch.shape == SHAPE and batch.dtype == torch.uint8 for batch in batches)


def test_a_slot_is_sent_once_and_then_named() -> None:
    sent = list(filled_batches(3, 1))
    assert [filled.memory is not None for filled in sent] == [True] * 3 + [False] * 27
    assert [filled.slot for filled in sent] == [0, 1, 2] * 10


def test_a_slot_that_was_filled_again_before_it_was_read_is_noticed() -> None:
    reader = SlotReader(SHAPE, pinned=False)
    sent = list(islice(filled_batches(1, 1, ahead=4), 3))  # one slot, four batches asked for at once
    with pytest.raises(AssertionError, match="filled again"):
        for filled in sent:
            reader.copy(filled)
