"""The operations of a step are those of its matrices, counted without computing, and each once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpp.model.flops import flops_per_image
from mpp.model.mixing import Mixing
from mpp.model.tasks import (
    Classification,
    ClassificationConfig,
    MaskedPatchesConfig,
    StepOutput,
    TaskConfig,
    build_task,
    zero_linear,
)
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch

SMALL = VitConfig(name="vit_tiny_patch16_224", image_size=(8, 8), patch_size=2, width=16, depth=2, heads=2)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("task", [MaskedPatchesConfig(), ClassificationConfig()], ids=lambda task: task.kind)
@pytest.mark.parametrize(
    ("vit", "depth", "width", "patches"),
    [
        (VitConfig(), 12, 768, 196),
        (VitConfig(name="vit_small_patch16_224", positions="sincos2d", drop_path=0.1), 12, 384, 196),
        (VitConfig(name="vit_large_patch16_224", image_size=(384, 384)), 24, 1024, 576),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_step_is_three_times_the_products_of_a_vit_within_five_per_cent(
    task: TaskConfig, vit: VitConfig, depth: int, width: int, patches: int
) -> None:
    counted = flops_per_image(on_meta(lambda: build_task(task, Vit(vit), num_classes=10, seed=0)), vit.image_size)
    tokens = patches + 1
    layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    assert counted == pytest.approx(3 * layer * depth, rel=0.05)


def test_with_both_ends_the_count_is_exact_but_for_the_gradient_of_the_pixels() -> None:
    vit = on_meta(lambda: Vit(SMALL))
    task = Classification(vit, on_meta(lambda: zero_linear(16, 3)), Mixing(), seed=0)
    tokens, width = 17, 16
    layers = 2 * (24 * tokens * width**2 + 4 * tokens**2 * width)
    pixels, head = 2 * 16 * 3 * 4 * width, 2 * 3 * width
    assert flops_per_image(task, SMALL.image_size) == 3 * (layers + head) + 2 * pixels


class Squares(nn.Module):
    """Four square layers on four numbers an image, with or without recomputation of what GELU keeps."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4, bias=False), nn.GELU()) for _ in range(4))

    def forward(self, batch: Batch) -> StepOutput:
        values: Tensor = batch.images.flatten(1)[:, :4].float().requires_grad_()
        for layer in self.layers:
            values = checkpoint(layer, values, use_reentrant=False) if self.again else layer(values)
        return StepOutput(values.sum(), {})


@pytest.mark.parametrize("again", [False, True])
def test_what_is_recomputed_does_not_count(again: bool) -> None:
    task: Any = on_meta(lambda: Squares(again))
    assert flops_per_image(task, (2, 2)) == 4 * 3 * 2 * 4 * 4
    assert all(parameter.grad is None for parameter in task.parameters())
