"""Settings of how a step is computed change no result but for rounding, and a step never waits for the device."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mpp.config import resolve
from mpp.model.mixing import Mixing
from mpp.model.tasks import MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch
from mpp.training.computing import Compute, images_at_once, set_up
from mpp.training.optim import AdamW, build_optimizer

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 2, "width": 16, "depth": 3, "heads": 2}
CPU = torch.device("cpu")


def task_of(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    task = build_task(MaskedPatchesConfig(), Vit(resolve(VitConfig, TINY | changes)), num_classes=None, seed=0)
    nn.init.normal_(task.get_parameter("head.weight"))
    return task.train()


def batch_of(count: int = 6) -> Batch:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, None, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def computed(task: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    loss = task(batch_of()).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in task.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize(
    "settings",
    [
        Compute(compile=False, checkpointing=1),
        Compute(compile=False, checkpointing=2),
        pytest.param(Compute(compile=True), marks=pytest.mark.slow),
        pytest.param(Compute(compile=True, checkpointing=1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_gradients_stay_the_same(settings: Compute) -> None:
    if settings.compile and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    plain, other = task_of(), task_of()
    set_up(other, settings)
    expected, found = computed(plain), computed(other)
    assert expected.keys() == found.keys()
    assert other.state_dict().keys() == plain.state_dict().keys()
    for name, value in expected.items():
        # compiled code adds up in another order
        assert (found[name] - value).abs().max() <= 1e-5 * (1 + value.abs().max()), name


def test_nothing_is_compiled_unless_asked_for() -> None:
    task = task_of()
    set_up(task, Compute())
    assert task._compiled_call_impl is None
    set_up(task, Compute(compile=True))
    assert task._compiled_call_impl is not None


def test_a_step_never_reads_a_value_back_from_the_device() -> None:
    """A fake tensor has no values, so that ``item``, ``bool``, ``nonzero`` and a boolean index of one raise."""
    task, batch = task_of(drop_path=0.2), batch_of()
    with FakeTensorMode() as fake:
        task._apply(fake.from_tensor)
        optimizer = build_optimizer(task, AdamW())
        output = task(Batch(fake.from_tensor(batch.images), None, *map(fake.from_tensor, (batch.ids, batch.epochs))))
        output.loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with pytest.raises(DataDependentOutputException):
            float(output.loss)


def test_the_loss_is_in_fp32_where_the_rest_is_in_bf16() -> None:
    task, seen = task_of(), []
    task.get_submodule("head").register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = task(batch_of()).loss
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task(batch_of()).loss.item(), rel=0.05)


def test_images_at_once_follow_from_the_networks_shape_alone() -> None:
    small, wide = (Vit(resolve(VitConfig, TINY | {"width": width})) for width in (16, 64))
    assert images_at_once(small, CPU) == 4 * images_at_once(wide, CPU)  # type: ignore[operator]
    assert images_at_once(small, CPU, mixing=Mixing()) == images_at_once(small, CPU)


def test_on_a_gpu_and_for_mixing_a_batch_is_not_cut() -> None:
    vit = Vit(resolve(VitConfig, TINY))
    assert images_at_once(vit, torch.device("cuda")) is None
    assert images_at_once(vit, CPU, mixing=Mixing(cutmix=1.0)) is None
    assert images_at_once(nn.Linear(2, 2), CPU) is None
