"""The memory of a GPU: 16 bytes a parameter under DDP and ZeRO, divided as the stages say (ZeRO, section 5)."""

from functools import cache

import pytest

from mpp.model.tasks import MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.training.gpu_memory import GpuMemory, MemoryPlan
from mpp.training.optim import AdamW, build_optimizer

SMALL = VitConfig(name="vit_tiny_patch16_224", image_size=(64, 64), patch_size=8, width=64, depth=3, heads=4)
ROOM = 8e9


@cache  # it counts a step, which takes a moment
def plan(gpus: int, *, half: bool = True, averaged: bool = False) -> MemoryPlan:
    return MemoryPlan(
        lambda: build_task(MaskedPatchesConfig(), Vit(SMALL), num_classes=None, seed=0),
        SMALL.image_size,
        lambda task: build_optimizer(task, AdamW()),
        gpus=gpus,
        half=half,
        averaged=averaged,
    )


def rows(made: MemoryPlan, stage: int, *, micro: int = 8, share: int = 96, room: float = ROOM) -> list[GpuMemory]:
    return list(made.ways(stage, micro=micro, share=share, room=room))


def test_without_zero_a_parameter_takes_16_bytes_and_4_more_in_the_buckets_of_ddp() -> None:
    for gpus, name, buckets in ((1, "one GPU", 0), (8, "DDP", 4)):
        made = plan(gpus)
        (row,) = rows(made, 0)
        assert row.name == name
        assert (row.weights, row.gradients) == (4 * made.parameters, 4 * made.trained)
        assert row.optimizer == pytest.approx(8 * made.trained, rel=0.01)
        assert row.buffers == buckets * made.trained
        assert row.total == row.weights + row.gradients + row.optimizer + row.buffers + row.activations


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 1, 1), (2, 1, 4), (3, 4, 4)])
def test_a_stage_divides_what_it_says(stage: int, weights: int, gradients: int) -> None:
    made = plan(4)
    row = rows(made, stage)[0]
    assert row.weights == 2 * made.parameters // weights
    assert row.gradients == 2 * made.trained // gradients
    assert row.optimizer == pytest.approx(12 * made.trained / 4, rel=0.01)


def test_offloading_moves_optimizer_and_gradients_and_under_stage_3_weights() -> None:
    made = plan(4)
    for stage in (2, 3):
        kept, away = rows(made, stage)
        assert away.gradients == away.optimizer == 0 and away.name == f"ZeRO {stage}, offload"
        assert away.weights == (kept.weights if stage == 2 else 0)
        assert away.main_memory == kept.optimizer + kept.gradients + (kept.weights if stage == 3 else 0)
        assert kept.main_memory == 0 and away.total == kept.total - away.main_memory
    assert [row.name for row in rows(made, 1)] == ["ZeRO 1"]


def test_in_fp32_weights_and_gradients_of_zero_take_4_bytes() -> None:
    made = plan(2, half=False)
    assert rows(made, 1)[0].weights == 4 * made.parameters
    assert rows(made, 1)[0].activations == rows(made, 0)[0].activations


def test_an_average_of_the_weights_is_one_more_copy() -> None:
    bare, averaged = plan(8), plan(8, averaged=True)
    assert rows(averaged, 0)[0].buffers - rows(bare, 0)[0].buffers == 4 * bare.parameters


def test_the_largest_micro_batch_fits_and_the_usable_one_divides_the_share_too() -> None:
    made = plan(8)
    for room in (3e7, 1e8):
        (row,) = rows(made, 0, share=96, room=room)
        fixed = row.total - row.activations
        assert fixed + made.step.activations(row.largest_micro_batch) <= room
        assert fixed + made.step.activations(row.largest_micro_batch + 1) > room
        assert row.micro_batch == max(n for n in range(1, 97) if 96 % n == 0 and n <= row.largest_micro_batch)


def test_where_nothing_fits_both_are_0() -> None:
    (row,) = rows(plan(8), 0, room=1e6)
    assert (row.largest_micro_batch, row.micro_batch) == (0, 0)
