"""Corruption: exact counts, no patch replaced by itself, the same for any batch, device and process."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.errors import ConfigError
from mpp.model.masking import RandomMask, corrupt, hash64
from mpp.shards import hashing


@given(st.integers(1, 400), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_counts_are_exact_for_every_grid_and_share(num_patches: int, ratio: float, masked: float, rest: float) -> None:
    mask = RandomMask(ratio=ratio, masked=masked, other=(1 - masked) * rest)
    counts = mask.counts(num_patches)
    assert min(counts) >= 0
    assert sum(counts) == max(1, int(ratio * num_patches + 0.5))
    ids = torch.arange(7)
    drawn = mask.draw(ids, num_patches, seed=3, epoch=1)
    assert drawn.positions_BM.shape == (7, sum(counts))
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


def test_the_draw_of_an_image_does_not_depend_on_its_batch() -> None:
    mask, ids = RandomMask(), torch.tensor([5, 17, 123456789012])
    together = mask.draw(ids, 64, seed=1, epoch=2)
    for row in range(3):
        alone = mask.draw(ids[row : row + 1], 64, seed=1, epoch=2)
        assert torch.equal(alone.positions_BM[0], together.positions_BM[row])
        assert torch.equal(alone.sources_BO[0], together.sources_BO[row])


@pytest.mark.parametrize("other", [{"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}])
def test_another_seed_or_epoch_draws_another_mask(other: dict[str, int]) -> None:
    mask, ids = RandomMask(), torch.arange(4)
    first = mask.draw(ids, 64, seed=1, epoch=2).positions_BM
    assert not torch.equal(first, mask.draw(ids, 64, **other).positions_BM)


def test_every_patch_is_corrupted_and_used_as_a_source_equally_often() -> None:
    drawn = RandomMask().draw(torch.arange(20_000), 16, seed=0, epoch=0)
    share = torch.bincount(drawn.positions_BM.flatten(), minlength=16) / 20_000
    assert torch.allclose(share, torch.full((16,), 0.5), atol=0.02)  # 5.6 standard deviations
    sources = torch.bincount(drawn.sources_BO.flatten(), minlength=16) / 20_000
    assert torch.allclose(sources, torch.full((16,), 1 / 16), atol=0.01)


def test_corrupt_puts_each_replacement_in_its_place_and_leaves_the_rest() -> None:
    tokens = torch.arange(2 * 16.0).reshape(2, 16, 1) + 100
    drawn = RandomMask().draw(torch.tensor([3, 4]), 16, seed=0, epoch=0)
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


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"masked \+ other"):
        RandomMask(masked=0.8, other=0.3).counts(16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_mask_as_the_cpu() -> None:
    ids = torch.arange(64)
    on_cpu, on_gpu = (RandomMask().draw(ids.to(device), 196, seed=1, epoch=2) for device in ("cpu", "cuda"))
    assert torch.equal(on_cpu.positions_BM, on_gpu.positions_BM.cpu())
    assert torch.equal(on_cpu.sources_BO, on_gpu.sources_BO.cpu())
