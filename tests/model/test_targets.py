"""Targets: colour bins, cells and pixels held against slow, plain computations."""

import math

import pytest
import torch

from mpp.model.targets import DownsizedColors, MeanColor, Pixels, class_colors, color_classes, cut_patches, uniform_loss

NOISE = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_patches_are_numbered_row_by_row_as_a_convolution_does() -> None:
    patches = cut_patches(NOISE, (4, 4))
    assert patches.shape == (2, 6, 3, 4, 4)
    assert torch.equal(patches[1, 4], NOISE[1, :, 4:8, 4:8])


def test_patches_need_not_be_square() -> None:
    assert torch.equal(cut_patches(NOISE, (2, 6))[0, 3], NOISE[0, :, 2:4, 6:12])


@pytest.mark.parametrize(
    ("value", "expected_bin"),
    [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (127, 3), (128, 4), (254, 7), (255, 7)],
)
def test_bins_are_uniform_and_rounded_down(value: int, expected_bin: int) -> None:
    patch = torch.full((3, 4, 4), value, dtype=torch.uint8)
    assert color_classes(patch, 3).item() == expected_bin * (64 + 8 + 1)


def test_a_mean_of_exactly_an_eighth_falls_into_bin_one() -> None:
    patch = torch.zeros(3, 1, 8, dtype=torch.uint8)
    patch[0, 0, 0] = 255  # the mean of red is 255 / 8, so 0.125 exactly
    assert color_classes(patch, 3).item() == 1 << 6


def test_classes_equal_floating_point_binning_of_the_mean() -> None:
    patches = cut_patches(NOISE, (4, 4))
    means = patches.double().mean((-2, -1)) / 255
    bins = (means * 8).floor().clamp(max=7).long()
    assert torch.equal(color_classes(patches, 3), bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2])


def test_class_colors_fall_back_into_their_class() -> None:
    classes = torch.arange(512)
    assert torch.equal(color_classes(class_colors(classes, 3)[..., None, None], 3), classes)


@pytest.mark.parametrize("target", [MeanColor(), DownsizedColors(), DownsizedColors(side=2)])
def test_zero_scores_lose_exactly_the_uniform_loss(target: MeanColor | DownsizedColors) -> None:
    patches = cut_patches(NOISE, (4, 4))
    loss = target.judge(torch.zeros(2, 6, target.num_outputs((4, 4))), patches).loss
    assert loss.item() == pytest.approx(math.log(512), abs=1e-5)
    assert uniform_loss(3) == pytest.approx(math.log(512))


def test_cells_of_a_downsized_patch_are_its_quarters() -> None:
    patch = cut_patches(NOISE, (4, 4))[:1, :1]
    cells = DownsizedColors(side=2)._cells(patch)[0, 0]
    for row in range(2):
        for column in range(2):
            assert torch.equal(
                cells[2 * row + column], patch[0, 0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            )


@pytest.mark.parametrize("target", [MeanColor(), DownsizedColors(side=2)])
def test_a_perfect_prediction_hits_everywhere_and_is_painted_in_its_class(target: MeanColor | DownsizedColors) -> None:
    patches = cut_patches(NOISE, (4, 4))
    cells = target._cells(patches) if isinstance(target, DownsizedColors) else patches[:, :, None]
    labels = color_classes(cells, 3)
    scores = 50 * torch.nn.functional.one_hot(labels, 512).float().flatten(2)
    judged = target.judge(scores, patches)
    assert judged.hits_BM.min() == 1
    assert judged.loss < 1e-3
    painted = target.paint(scores, (4, 4))
    repainted = target._cells(painted) if isinstance(target, DownsizedColors) else painted[:, :, None]
    assert torch.equal(color_classes(repainted, 3), labels)


def test_pixel_loss_is_the_mean_squared_error_in_minus_one_to_one() -> None:
    patches = cut_patches(NOISE, (4, 4))
    gray = Pixels().judge(torch.zeros(2, 6, 48), patches).loss
    assert gray.item() == pytest.approx(((patches.double() / 127.5 - 1) ** 2).mean().item(), rel=1e-6)
    exact = patches.flatten(2).float() / 127.5 - 1
    assert Pixels().judge(exact, patches).loss == 0
    assert torch.equal(Pixels().paint(exact, (4, 4)), patches)


def test_half_precision_scores_are_judged_in_fp32() -> None:
    patches = cut_patches(NOISE, (4, 4))
    for target in (MeanColor(), Pixels()):
        scores = torch.zeros(2, 6, target.num_outputs((4, 4)), dtype=torch.bfloat16)
        assert target.judge(scores, patches).loss.dtype == torch.float32
