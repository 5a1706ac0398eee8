"""Trivial baselines: known values on images made for them."""

import math

import pytest
import torch

from mpp.model.baselines import trivial_baselines
from mpp.model.masking import BlockMask, Mask, RandomMask


def figures(images: torch.Tensor, mask: Mask | None = None) -> dict[str, float]:
    return trivial_baselines(images, torch.arange(len(images)), (4, 4), mask or RandomMask(), 3, seed=0)


def test_flat_images_of_two_colors_are_solved_by_their_neighbours() -> None:
    images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    images[:50] = 200
    result = figures(images)
    assert result["uniform_loss"] == pytest.approx(math.log(512))
    assert result["marginal_loss"] == pytest.approx(math.log(2))
    assert result["majority_accuracy"] == 0.5
    assert result["visible_mean_accuracy"] == 1
    assert result["interpolation_accuracy"] == 1


def test_a_smooth_image_is_better_interpolated_than_averaged() -> None:
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(20, 3, 64, 64)
    result = figures(ramp.contiguous())
    assert result["interpolation_accuracy"] > 0.6
    assert result["visible_mean_accuracy"] < 0.3


def test_blocks_are_harder_to_interpolate_than_single_patches() -> None:
    ramp = torch.linspace(0, 255, 96).to(torch.uint8).expand(20, 3, 64, 96).contiguous()
    blocks, singles = (figures(ramp, mask)["interpolation_accuracy"] for mask in (BlockMask(), RandomMask()))
    assert blocks < singles - 0.2


def test_noise_cannot_be_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=generator)
    noise = flat.repeat_interleave(4, 2).repeat_interleave(4, 3)
    result = figures(noise)
    assert result["interpolation_accuracy"] < 0.1
    assert result["majority_accuracy"] < 0.02
