"""Corruption: exact counts, no patch replaced by itself, the same for any batch, device and process."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mpp.errors import ConfigError
from mpp.model.masking import (
    BlockMask,
    Counts,
    Mask,
    RandomMask,
    _num_blocks,
    _possible_shapes,
    corrupt,
    hash64,
)
from mpp.shards import hashing


@pytest.mark.parametrize("kind", [RandomMask, BlockMask])
@given(st.integers(1, 24), st.integers(1, 24), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_counts_are_exact_for_every_grid_and_share(
    kind: type[RandomMask | BlockMask], height: int, width: int, ratio: float, masked: float, rest: float
) -> None:
    mask, num_patches = kind(ratio=ratio, masked=masked, other=(1 - masked) * rest), height * width
    counts = mask.counts(num_patches)
    assert min(counts) >= 0
    assert sum(counts) == max(1, int(ratio * num_patches + 0.5))
    ids = torch.arange(7)
    drawn = mask.draw(ids, (height, width), seed=3, epoch=1)
    assert drawn.positions_BM.shape == (7, sum(counts))
    assert 0 <= drawn.positions_BM.min() and drawn.positions_BM.max() < num_patches
    for row in drawn.positions_BM:
        assert len(set(row.tolist())) == sum(counts)
    replaced = drawn.positions_BM[:, counts.masked : counts.masked + counts.other]
    assert not (drawn.sources_BO == replaced).any()
    assert drawn.sources_BO.numel() == 0 or (0 <= drawn.sources_BO.min() and drawn.sources_BO.max() < num_patches)


@pytest.mark.parametrize(
    ("num_patches", "expected"), [(196, (78, 10, 10)), (64, (26, 3, 3)), (16, (6, 1, 1)), (256, (102, 13, 13))]
)
def test_default_counts_are_half_of_the_patches_split_80_10_10(
    num_patches: int, expected: tuple[int, int, int]
) -> None:
    assert RandomMask().counts(num_patches) == expected


@pytest.mark.parametrize("mask", [RandomMask(), BlockMask()])
def test_the_draw_of_an_image_does_not_depend_on_its_batch(mask: Mask) -> None:
    ids = torch.tensor([5, 17, 123456789012])
    together = mask.draw(ids, (8, 8), seed=1, epoch=2)
    for row in range(3):
        alone = mask.draw(ids[row : row + 1], (8, 8), seed=1, epoch=2)
        assert torch.equal(alone.positions_BM[0], together.positions_BM[row])
        assert torch.equal(alone.sources_BO[0], together.sources_BO[row])


@pytest.mark.parametrize("mask", [RandomMask(), BlockMask()])
@pytest.mark.parametrize("other", [{"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}])
def test_another_seed_or_epoch_draws_another_mask(mask: Mask, other: dict[str, int]) -> None:
    ids = torch.arange(4)
    first = mask.draw(ids, (8, 8), seed=1, epoch=2).positions_BM
    assert not torch.equal(first, mask.draw(ids, (8, 8), **other).positions_BM)


def test_every_patch_is_corrupted_and_used_as_a_source_equally_often() -> None:
    drawn = RandomMask().draw(torch.arange(20_000), (4, 4), seed=0, epoch=0)
    share = torch.bincount(drawn.positions_BM.flatten(), minlength=16) / 20_000
    assert torch.allclose(share, torch.full((16,), 0.5), atol=0.02)  # 5.6 standard deviations
    sources = torch.bincount(drawn.sources_BO.flatten(), minlength=16) / 20_000
    assert torch.allclose(sources, torch.full((16,), 1 / 16), atol=0.01)


def maps(mask: Mask, grid: tuple[int, int], count: int) -> torch.Tensor:
    """Draw for ``count`` images and return where they are corrupted, bool [count, h, w]."""
    drawn = mask.draw(torch.arange(count), grid, seed=0, epoch=0)
    corrupted = torch.zeros(count, grid[0] * grid[1], dtype=torch.bool).scatter(1, drawn.positions_BM, True)
    return corrupted.unflatten(1, grid)


def corrupted_neighbours(corrupted_BHW: torch.Tensor) -> float:
    """Return the share of the four neighbours of corrupted patches, inside the image, that are corrupted too."""
    down, right = (corrupted_BHW[:, :-1], corrupted_BHW[:, 1:]), (corrupted_BHW[..., :-1], corrupted_BHW[..., 1:])
    both = sum(int((first & second).sum()) for first, second in (down, right))
    either = sum(int(first.sum()) + int(second.sum()) for first, second in (down, right))
    return 2 * both / either


@given(st.integers(8, 20), st.integers(8, 20), st.floats(0.2, 0.7))
@settings(deadline=None, max_examples=30)
def test_blocks_hang_together_where_single_patches_do_not(height: int, width: int, ratio: float) -> None:
    blocks, singles = (
        corrupted_neighbours(maps(kind(ratio=ratio), (height, width), 200)) for kind in (BlockMask, RandomMask)
    )
    assert singles == pytest.approx(ratio, abs=0.08)  # of a patch's neighbours as many as of all patches
    assert blocks > singles + 0.35 * (1 - singles)


def test_one_block_may_hold_all_corrupted_patches() -> None:
    corrupted = maps(BlockMask(), (14, 14), 500)
    rectangles = 0
    for image in corrupted:
        rows, columns = image.nonzero().unbind(1)
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        rectangles += bool(area == 98)
    assert 0 < rectangles < 100  # shapes of all of the corrupted patches are drawn, but few


def test_shapes_of_blocks_are_those_of_beit() -> None:
    shapes = _possible_shapes((14, 14), 75)  # its 75 of 196 patches; there blocks have 16 at least
    assert {height * width for height, width in shapes} <= set(range(15, 76))
    assert {(3, 5), (4, 4), (3, 10), (10, 3), (8, 9)} <= set(shapes)
    assert not {(2, 8), (1, 15), (3, 11), (3, 4), (9, 9)} & set(shapes)
    assert _possible_shapes((1, 40), 20) == [(1, 3)]  # the largest that are not too flat


@pytest.mark.parametrize(("grid", "ratio"), [((8, 8), 0.5), ((5, 14), 0.3), ((14, 14), 0.75), ((6, 4), 0.6)])
def test_blocks_are_those_of_a_loop_that_lays_one_after_the_other(grid: tuple[int, int], ratio: float) -> None:
    mask, num_patches = BlockMask(ratio=ratio), grid[0] * grid[1]
    total = sum(mask.counts(num_patches))
    shapes = _possible_shapes(grid, total)
    drawn = mask.draw(torch.arange(40), grid, seed=3, epoch=5)
    for image in range(40):
        key = hashing.hash64(3, 5, np.array([image], np.int64)).view(np.int64)

        def number(offset: int, key: Any = key) -> int:
            return int(hash64(torch.from_numpy(key) + offset))

        taken: list[int] = []
        for block in range(_num_blocks(grid, total)):
            down, right, shape = (number(num_patches + 3 * block + part) & (2**63 - 1) for part in (1, 2, 0))
            height, width = shapes[shape % len(shapes)]
            top, left = down % (grid[0] - height + 1), right % (grid[1] - width + 1)
            places = [grid[1] * row + left + column for row in range(top, top + height) for column in range(width)]
            in_turn = places if number(-1 - num_patches) > 0 else places[::-1]
            taken += [place for place in in_turn if place not in taken]
        assert len(taken) >= total
        assert sorted(taken[:total]) == sorted(drawn.positions_BM[image].tolist())


def test_a_step_that_is_only_counted_leaves_later_draws_alone() -> None:
    grid = (9, 7)  # of no other test
    for _ in range(2):
        with FakeTensorMode():
            drawn = BlockMask().draw(torch.arange(3), grid, seed=0, epoch=0)
        assert drawn.positions_BM.shape == (3, 32)
        assert maps(BlockMask(), grid, 5).sum() == 5 * 32
    with torch.device("meta"):
        assert BlockMask().draw(torch.arange(3), grid, seed=0, epoch=0).positions_BM.is_meta


@pytest.mark.parametrize("grid", [(12, 12), (6, 20)])
def test_blocks_favour_no_side_of_an_image(grid: tuple[int, int]) -> None:
    share = maps(BlockMask(ratio=0.4), grid, 10_000).float().mean(0)
    assert share.mean() == pytest.approx(round(0.4 * share.numel()) / share.numel())
    assert torch.allclose(share, share.flip(0), atol=0.03)  # more than 4 standard deviations
    assert torch.allclose(share, share.flip(1), atol=0.03)
    assert share.min() > 0.05  # the corners too


def test_masked_replaced_and_kept_patches_are_mixed_within_blocks() -> None:
    mask, count = BlockMask(masked=0.5, other=0.25), 4000
    drawn = mask.draw(torch.arange(count), (8, 8), seed=0, epoch=0)
    assert mask.counts(64) == Counts(16, 8, 8)
    for part in drawn.positions_BM.split([16, 8, 8], dim=1):
        rows = part // 8
        assert rows.float().mean() == pytest.approx(3.5, abs=0.1)  # 5 standard deviations
    in_turn = [(drawn.positions_BM[:, 1:] - drawn.positions_BM[:, :-1] == 1).float().mean()]
    assert in_turn[0] < 0.1  # no reading order left


def test_rows_of_patches_can_be_corrupted_in_blocks_too() -> None:
    for grid in ((1, 40), (40, 1), (2, 30)):
        assert corrupted_neighbours(maps(BlockMask(), grid, 200)) > 0.65


def test_corrupt_puts_each_replacement_in_its_place_and_leaves_the_rest() -> None:
    tokens = torch.arange(2 * 16.0).reshape(2, 16, 1) + 100
    drawn = RandomMask().draw(torch.tensor([3, 4]), (4, 4), seed=0, epoch=0)
    result = corrupt(tokens, torch.tensor([-1.0]), drawn)
    for image in range(2):
        places = drawn.positions_BM[image].tolist()
        masked, other, kept = places[:6], places[6:7], places[7:]
        assert all(result[image, place, 0] == -1 for place in masked)
        assert result[image, other[0], 0] == tokens[image, drawn.sources_BO[image, 0], 0]
        for place in [*kept, *(set(range(16)) - set(places))]:
            assert result[image, place, 0] == tokens[image, place, 0]


def test_the_hash_equals_the_one_that_orders_samples() -> None:
    ids = np.array([0, 1, 2**40, 2**62], dtype=np.int64)
    chained = hash64(hash64(hash64(torch.full((4,), 7)) + 11) + torch.from_numpy(ids))
    assert np.array_equal(chained.numpy().view(np.uint64), hashing.hash64(7, 11, ids))


@pytest.mark.parametrize("kind", [RandomMask, BlockMask])
def test_shares_above_one_are_refused(kind: type[RandomMask | BlockMask]) -> None:
    with pytest.raises(ConfigError, match=r"masked \+ other"):
        kind(masked=0.8, other=0.3).counts(16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mask", [RandomMask(), BlockMask()])
def test_a_gpu_draws_the_same_mask_as_the_cpu(mask: Mask) -> None:
    ids = torch.arange(64)
    on_cpu, on_gpu = (mask.draw(ids.to(device), (14, 14), seed=1, epoch=2) for device in ("cpu", "cuda"))
    assert torch.equal(on_cpu.positions_BM, on_gpu.positions_BM.cpu())
    assert torch.equal(on_cpu.sources_BO, on_gpu.sources_BO.cpu())
