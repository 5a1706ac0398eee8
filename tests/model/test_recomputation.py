"""Recomputed activations change memory and time, and neither the loss nor a gradient, with dropped paths too."""

import pytest
import torch
from torch import Tensor, nn

from mpp.config import resolve
from mpp.model.recomputation import run_blocks
from mpp.model.vit import Vit, VitConfig

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 2, "width": 16, "depth": 5, "heads": 2}


def computed(vit: Vit, images: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    vit.zero_grad()
    loss = vit(images).patches_BND.square().mean() + torch.rand(())  # what is drawn afterwards is the same too
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in vit.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_loss_and_gradients_are_bit_for_bit_the_same(every: int, drop_path: float) -> None:
    torch.manual_seed(0)
    vit = Vit(resolve(VitConfig, {**TINY, "drop_path": drop_path})).train()
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    kept = computed(vit, images)
    vit.recompute_every = every
    again = computed(vit, images)
    assert len(kept) == len(again) > 10
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(kept, again, strict=True))


@pytest.mark.parametrize(
    ("every", "runs"), [(0, [1, 1, 1, 1]), (1, [2, 2, 2, 2]), (2, [1, 2, 1, 2]), (3, [1, 1, 2, 1])]
)
def test_every_nth_block_is_run_twice(every: int, runs: list[int]) -> None:
    blocks, counts = [nn.Linear(3, 3) for _ in range(4)], [0] * 4
    for number, block in enumerate(blocks):

        def count(module: nn.Module, inputs: object, number: int = number) -> None:
            counts[number] += 1

        block.register_forward_pre_hook(count)
    run_blocks(blocks, torch.randn(2, 3, requires_grad=True), every=every).sum().backward()
    assert counts == runs


def test_nothing_is_recomputed_in_evaluation() -> None:
    vit = Vit(resolve(VitConfig, TINY)).eval()
    vit.recompute_every, counts = 1, []
    vit.timm.blocks[0].register_forward_pre_hook(lambda module, inputs: counts.append(1))
    vit(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).patches_BND.sum().backward()
    assert counts == [1]
