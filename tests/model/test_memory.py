"""Memory counted on fake tensors is that of a real step, and none is taken for it."""

import resource
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpp.model.flops import blank_batch
from mpp.model.memory import Numbers, StepMemory, peak_bytes, storage_bytes
from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig, StepOutput, TaskConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch
from mpp.training.optim import Adam, AdamW, OptimizerConfig, Sgd, build_optimizer

SMALL = VitConfig(name="vit_tiny_patch16_224", image_size=(64, 64), patch_size=8, width=64, depth=3, heads=4)


def builder(task: TaskConfig, vit: VitConfig = SMALL) -> Callable[[], nn.Module]:
    return lambda: build_task(task, Vit(vit), num_classes=10, seed=0)


def with_gradients(task: nn.Module) -> nn.Module:
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return task.train()


@pytest.mark.parametrize("task", [MaskedPatchesConfig(), ClassificationConfig()], ids=lambda task: task.kind)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch", [1, 6])
def test_the_peak_of_a_real_step_is_the_one_computed(task: TaskConfig, autocast: bool, batch: int) -> None:
    computed = StepMemory(builder(task), SMALL.image_size, "autocast" if autocast else "fp32").activations(batch)
    real = peak_bytes(with_gradients(builder(task)()), SMALL.image_size, batch, autocast=autocast)
    assert computed == pytest.approx(real, rel=0.01)


def test_nearly_all_of_the_peak_is_what_autograd_saves_in_a_real_step() -> None:
    task = with_gradients(builder(MaskedPatchesConfig())())
    own = {id(tensor.untyped_storage()) for tensor in [*task.parameters(), *task.buffers()]}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task(blank_batch(16, SMALL.image_size, "cpu"))
    held = storage_bytes(tensor for tensor in saved if id(tensor.untyped_storage()) not in own)
    computed = StepMemory(builder(MaskedPatchesConfig()), SMALL.image_size, "fp32").activations(16)
    assert held <= computed <= 1.25 * held


class Squares(nn.Module):
    """Eight layers of 256 numbers an image, each of which keeps its input, in one piece or recomputed."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(8))

    def forward(self, batch: Batch) -> StepOutput:
        values: Tensor = batch.images.flatten(1)[:, :256].float()
        for layer in self.layers:
            values = checkpoint(layer, values, use_reentrant=False) if self.again else layer(values)
        return StepOutput(values.sum(), {})


def test_of_a_linear_layer_and_a_gelu_two_outputs_are_alive() -> None:
    numbers = 256 * 4
    kept = numbers + 8 * 2 * numbers  # the input; every product, which GELU keeps, and its result, for the next layer
    pixels, gradient = 3 * 16 * 16, numbers
    found = StepMemory(lambda: Squares(False), (16, 16), "fp32").activations(1000)
    assert found == pytest.approx(1000 * (kept + pixels + gradient), rel=0.01)


def test_activation_checkpointing_shows_without_being_known() -> None:
    whole = StepMemory(lambda: Squares(False), (16, 16), "fp32")
    again = StepMemory(lambda: Squares(True), (16, 16), "fp32")
    assert again.activations(1000) < 0.75 * whole.activations(1000)


def test_bf16_takes_little_more_than_half_and_autocast_between() -> None:
    def taken(numbers: Numbers) -> int:
        return StepMemory(builder(ClassificationConfig()), SMALL.image_size, numbers).activations(64)

    fp32, autocast, bf16 = taken("fp32"), taken("autocast"), taken("bf16")
    assert fp32 / 2 <= bf16 < 0.6 * fp32
    assert bf16 < autocast < fp32


@pytest.mark.parametrize(
    ("optimizer", "moments"), [(AdamW(), 2), (Adam(), 2), (Sgd(), 1)], ids=lambda value: str(value)
)
def test_an_optimizer_keeps_its_moments(optimizer: OptimizerConfig, moments: int) -> None:
    step = StepMemory(builder(MaskedPatchesConfig()), SMALL.image_size, "fp32")
    parameters = sum(parameter.numel() for parameter in builder(MaskedPatchesConfig())().parameters())
    kept = step.optimizer(lambda task: build_optimizer(task, optimizer))
    assert kept == pytest.approx(4 * moments * parameters, rel=0.01)


def test_what_is_not_trained_has_neither_gradient_nor_moments() -> None:
    vit = VitConfig(**{**vars(SMALL), "positions": "sincos2d"})
    step = StepMemory(builder(MaskedPatchesConfig(), vit), SMALL.image_size, "fp32")
    trained = sum(parameter.numel() for parameter in step.task.parameters() if parameter.requires_grad)
    assert trained < sum(parameter.numel() for parameter in step.task.parameters())
    assert step.optimizer(lambda task: build_optimizer(task, AdamW())) == pytest.approx(8 * trained, abs=1000)


@pytest.mark.parametrize("room", [5e6, 5e7, 5e9])
def test_the_largest_batch_fits_and_one_more_does_not(room: float) -> None:
    step = StepMemory(builder(MaskedPatchesConfig()), SMALL.image_size, "fp32")
    largest = step.largest_batch(room)
    assert step.activations(largest) <= room < step.activations(largest + 1)


def test_the_largest_batch_is_found_where_weights_outweigh_images() -> None:
    heavy = VitConfig(name="vit_tiny_patch16_224", image_size=(16, 16), patch_size=8, width=256, depth=4, heads=4)
    step = StepMemory(builder(MaskedPatchesConfig(), heavy), heavy.image_size, "autocast")
    for batch in (1, 2, 5, 100):
        room = step.activations(batch)
        found = step.largest_batch(room)
        assert step.activations(found) <= room < step.activations(found + 1)


def test_without_room_for_one_image_the_largest_batch_is_none() -> None:
    assert StepMemory(builder(MaskedPatchesConfig()), SMALL.image_size, "fp32").largest_batch(1000.0) == 0


def test_nothing_is_allocated() -> None:
    wide = VitConfig(name="vit_huge_patch14_224", width=6144, depth=2, heads=48)  # 3.6 GB of weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = StepMemory(builder(MaskedPatchesConfig(), wide), wide.image_size, "fp32")
    assert step.activations(1024) > 1e11
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
