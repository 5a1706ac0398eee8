"""Batches come to the device in their order, all of them, unchanged."""

import pytest
import torch

from mpp.stream.batches import Batch
from mpp.stream.device import OnDevice

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def batches(count: int) -> list[Batch]:
    numbers = torch.arange(count * 4).view(count, 4)
    images = torch.randint(0, 256, (count, 4, 3, 8, 8), dtype=torch.uint8)
    if torch.cuda.is_available():
        images = images.pin_memory()
    labels = [None, numbers[1], *numbers[2:]]
    return [Batch(image, label, ids, ids // 2) for image, label, ids in zip(images, labels, numbers, strict=True)]


@pytest.mark.parametrize("name", DEVICES)
def test_every_batch_arrives_as_it_was_and_the_end_is_the_end(name: str) -> None:
    device, given = torch.device(name), batches(5)
    stream = OnDevice(iter(given), device)
    for batch in given:
        moved = next(stream)
        for one, other in zip(batch, moved, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other.device.type == device.type
                assert torch.equal(one, other.cpu())
    with pytest.raises(StopIteration):
        next(stream)
