"""Reconstructions: gray where masked, sources where replaced, predictions where corrupted, the image elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.model.masking import BlockMask, Mask, RandomMask
from mpp.model.targets import MeanColor, Pixels, cut_patches
from mpp.model.tasks import MaskedPatches, MaskedPatchesConfig
from mpp.model.vit import Vit, VitConfig
from mpp.report.reconstructions import _join, draw_reconstructions, reconstruct
from mpp.stream.batches import Batch
from mpp.training.pretraining import PretrainConfig, pretrain


@pytest.mark.parametrize(("size", "patch"), [((8, 8), (2, 2)), ((6, 12), (3, 4)), ((4, 2), (4, 2))])
def test_joining_undoes_cutting(size: tuple[int, int], patch: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert torch.equal(_join(cut_patches(images, patch), grid), images)


@pytest.mark.parametrize("target", [MeanColor(), Pixels()])
@pytest.mark.parametrize("mask", [RandomMask(masked=0.5, other=0.25), BlockMask(masked=0.5, other=0.25)])
def test_each_picture_shows_what_it_says_patch_by_patch(tiny_vit: dict[str, Any], mask: Mask, target: Any) -> None:
    torch.manual_seed(0)
    settings = MaskedPatchesConfig(mask=mask, target=target)
    task = MaskedPatches(Vit(resolve(VitConfig, tiny_vit)), settings, seed=0).eval()
    torch.nn.init.normal_(task.head.weight)
    # no pixel is as gray as a masked patch is painted
    images = torch.randint(0, 100, (3, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(images, None, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    truth, predictions, corruption = task.predict(batch)
    original, corrupted, predicted = reconstruct(task, batch)
    assert torch.equal(original, images)
    before, shown, guessed = (cut_patches(picture, (2, 2)) for picture in (original, corrupted, predicted))
    masked, other, kept = corruption.counts
    assert (masked, other, kept) == (4, 2, 2)
    for row in range(3):
        positions = corruption.positions_BM[row].tolist()
        painted = target.paint(predictions[row : row + 1], (2, 2))[0]
        for number, place in enumerate(positions):
            assert torch.equal(guessed[row, place], painted[number])
            if number < masked:
                assert (shown[row, place] == 128).all()
            elif number < masked + other:
                assert torch.equal(shown[row, place], before[row, corruption.sources_BO[row, number - masked]])
            else:
                assert torch.equal(shown[row, place], before[row, place])
            assert torch.equal(truth[row, number], before[row, place])
        for place in set(range(16)) - set(positions):
            assert torch.equal(shown[row, place], before[row, place])
            assert torch.equal(guessed[row, place], before[row, place])
    assert not torch.equal(predicted, original)


def test_a_picture_of_a_run_is_written(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    draw_reconstructions(str(tiny_run), str(path), 100)  # more than the 60 images that there are
    with Image.open(path) as picture:
        assert picture.size[0] > 60 * picture.size[1] / 4


def test_a_run_without_patches_is_refused(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> None:
    tree = {
        "shards": str(tiny_shards),
        "out": str(tmp_path / "run"),
        "vit": tiny_vit,
        "task": {"kind": "classification"},
        "steps": 1,
        "global_batch": 4,
        "stream": {"workers": 0},
    }
    pretrain(resolve(PretrainConfig, tree))
    with pytest.raises(ConfigError, match="trained classification"):
        draw_reconstructions(str(tmp_path / "run"), str(tmp_path / "picture.png"), 4)


def test_a_folder_that_is_no_run_and_a_run_without_checkpoint_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        draw_reconstructions(str(tmp_path), str(tmp_path / "picture.png"), 4)
    (tmp_path / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="checkpoint"):
        draw_reconstructions(str(tmp_path), str(tmp_path / "picture.png"), 4)


def test_a_format_that_is_no_picture_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        draw_reconstructions(str(tiny_run), str(tmp_path / "picture.txt"), 4)
