"""How large a checkpoint will be is known before it is written, and a disk without room for it is refused."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mpp.config import resolve
from mpp.errors import DiskError
from mpp.model.tasks import MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.training.optim import AdamW, build_optimizer
from mpp.training.room import check_room, free_bytes, state_bytes


def test_the_size_by_arithmetic_is_that_of_the_files(tmp_path: Path) -> None:
    accelerator = Accelerator()
    shape = {
        "name": "vit_tiny_patch16_224",
        "image_size": (32, 32),
        "patch_size": 4,
        "width": 128,
        "depth": 2,
        "heads": 2,
    }
    task = build_task(MaskedPatchesConfig(), Vit(resolve(VitConfig, shape)), num_classes=0, seed=0)
    model, optimizer = accelerator.prepare(task, build_optimizer(task, AdamW()))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    size = state_bytes(accelerator)
    accelerator.free_memory()
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written == pytest.approx(size, rel=0.05), (written, size)


def test_what_is_saved_beside_counts_too() -> None:
    accelerator = Accelerator()
    average = torch.nn.Linear(10, 10, bias=False)
    assert state_bytes(accelerator, average) - state_bytes(accelerator) == 400


def test_room_is_asked_for_what_is_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "checkpoints"
    monkeypatch.setattr("mpp.training.room.free_bytes", lambda folder: 2199)
    for have, enough in ((0, False), (1, False), (2, True), (5, True)):
        if enough:
            check_room(folder, 1000, kept=2, have=have)
        else:
            with pytest.raises(DiskError, match=rf"{folder}.*{3200 - 1000 * have:,} bytes are needed, 2,199 are free"):
                check_room(folder, 1000, kept=2, have=have)


def test_room_is_that_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    statistics = os.statvfs(tmp_path)
    free = statistics.f_bavail * statistics.f_frsize
    assert free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(free, rel=0.2)
