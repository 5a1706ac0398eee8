"""The last block at some tokens only equals the whole block: loss, every gradient, the same dropped paths."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from mpp.config import resolve
from mpp.model.last_block import BlockAt, run_last, select_in_last_block, take
from mpp.model.tasks import MaskedPatches, MaskedPatchesConfig
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch

TINY = {"name": "vit_tiny_patch16_224", "image_size": (8, 12), "patch_size": 2, "width": 16, "depth": 2, "heads": 2}
FAMILIES: list[dict[str, Any]] = [
    {"pool": "token"},
    {"pool": "mean"},
    {"name": "vit_tiny_patch16_224", "drop_path": 0.5},
    {"name": "vit_small_patch14_reg4_dinov2", "drop_path": 0.5},  # layer scale, class and register tokens
]


def task_of(changes: dict[str, Any], dtype: torch.dtype) -> MaskedPatches:
    torch.manual_seed(0)
    vit = Vit(resolve(VitConfig, {**TINY, **changes}))
    task = MaskedPatches(vit, MaskedPatchesConfig(), seed=0).to(dtype).train()
    for name, parameter in task.named_parameters():  # no layer is neutral, as biases, scales and head are at first
        if parameter.ndim == 1 or name.startswith("head"):
            nn.init.normal_(parameter, std=0.5)
    return task


def computed(task: MaskedPatches, images: Tensor) -> dict[str, Tensor]:
    """Return the loss and all gradients."""
    count = len(images)
    batch = Batch(images, None, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    torch.manual_seed(1)
    task.zero_grad()
    loss = task(batch).loss
    loss.backward()
    return {
        "loss": loss.detach(),
        **{name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None},
    }


def whole(task: MaskedPatches, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return the same with every block computed at every token, and rows taken from the end."""
    vit, forward = task.vit, task.vit.forward

    def all_of_it(images: Tensor, corrupt: Any, at_BM: Tensor) -> Any:
        features = forward(images, corrupt)
        return features._replace(patches_BND=take(features.patches_BND, at_BM))

    with monkeypatch.context() as patch:
        patch.setattr(vit, "forward", all_of_it)
        return computed(task, images)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_loss_and_all_gradients_equal_those_of_the_whole_computation(
    images: Tensor, changes: dict[str, Any], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(changes, dtype)
    assert isinstance(task.vit.timm.blocks[-1], BlockAt)
    mine, full = computed(task, images), whole(task, images, monkeypatch)
    assert mine.keys() == full.keys() == {"loss", *dict(task.named_parameters())}
    for name, value in full.items():
        assert (mine[name] - value).abs().max() <= tolerance * (1 + value.abs().max()), name


def test_normalised_queries_and_keys_are_exact_too(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": (8, 12), "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    task = task_of({"pool": "mean"}, torch.float64)
    task.vit.timm = VisionTransformer(**shape, global_pool="avg", fc_norm=False, qk_norm=True, scale_attn_norm=True)
    task.vit.double()
    for parameter in task.vit.timm.blocks.parameters():
        nn.init.normal_(parameter, std=0.5)
    select_in_last_block(task.vit.timm.blocks)
    assert isinstance(task.vit.timm.blocks[-1], BlockAt)
    mine, full = computed(task, images), whole(task, images, monkeypatch)
    assert "vit.timm.blocks.1.attn.q_norm.weight" in full
    for name, value in full.items():
        assert (mine[name] - value).abs().max() <= 1e-12 * (1 + value.abs().max()), name


def test_the_last_block_does_less_work_with_positions(images: Tensor) -> None:
    vit, seen = task_of({}, torch.float32).vit, []
    vit.timm.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    vit(images, at_BM=torch.tensor([[3, 0, 7]] * 5))
    vit(images)
    assert [shape[1] for shape in seen] == [3, 25]


def test_a_block_of_another_kind_is_computed_whole_and_its_rows_taken() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(ParallelScalingBlock(16, 2))
    select_in_last_block(blocks)
    assert type(blocks[0]) is ParallelScalingBlock
    tokens, at = torch.randn(3, 9, 16), torch.tensor([[8, 1], [0, 4], [2, 3]])
    expected = blocks(tokens)
    rows = run_last(blocks[0], tokens, at)
    assert torch.equal(rows, torch.stack([expected[image, at[image]] for image in range(3)]))


def test_a_block_with_dropout_is_left_alone() -> None:
    from timm.models.vision_transformer import Block

    blocks = nn.Sequential(Block(16, 2, proj_drop=0.1))
    select_in_last_block(blocks)
    assert type(blocks[0]) is Block


def test_whole_rows_are_taken_and_their_gradients_come_back() -> None:
    rows = torch.randn(2, 5, 3, requires_grad=True)
    at = torch.tensor([[4, 0], [1, 2]])
    taken = take(rows, at)
    assert torch.equal(taken, rows.gather(1, at[..., None].expand(-1, -1, 3)))
    taken.sum().backward()
    assert rows.grad is not None
    assert rows.grad[..., 0].tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
