"""Reconstructions: gray where masked, sources where replaced, predictions where corrupted, the image elsewhere."""

from typing import Any

import pytest
import torch

from mpp.config import resolve
from mpp.model.masking import BlockMask, Mask, RandomMask
from mpp.model.reconstruction import _join, picture_grid, reconstruct
from mpp.model.targets import MeanColor, Pixels, cut_patches
from mpp.model.tasks import MaskedPatches, MaskedPatchesConfig
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch


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


def test_a_picture_has_a_column_for_each_image_and_leaves_the_task_in_its_mode(tiny_vit: dict[str, Any]) -> None:
    task = MaskedPatches(Vit(resolve(VitConfig, {**tiny_vit, "drop_path": 0.5})), MaskedPatchesConfig(), seed=0)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(images, None, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    for mode in (True, False):
        task.train(mode)
        picture = picture_grid(task, batch)
        assert task.training is task.vit.training is mode
        assert picture.shape == (3 * 8, 3 * 8, 3) and picture.dtype == torch.uint8
        rows = reconstruct(task.eval(), batch)
        for row in range(3):
            for column in range(3):
                cell = picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert torch.equal(cell, rows[row][column].permute(1, 2, 0))
