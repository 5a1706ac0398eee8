"""Mixing: shares are Beta distributed functions of integers, boxes have exactly their area, the loss counts both."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mpp.model.masking import RandomMask, hash64
from mpp.model.mixing import Mixing, beta_quantiles, mix, mixed_cross_entropy

MIXUP, CUTMIX, BOTH = Mixing(mixup=0.2), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)
IDS = torch.arange(64)


def images(count: int, height: int = 12, width: int = 20) -> Tensor:
    """Noise in which no two images have an equal value at the same place."""
    base = torch.arange(count).view(-1, 1, 1, 1) * 3 + torch.randint(
        0, 3, (count, 3, height, width), generator=torch.Generator().manual_seed(0)
    )
    return base.byte()


def shares(settings: Mixing, ids: Tensor, seed: int = 1, epoch: int | Tensor = 2) -> Tensor:
    return mix(torch.zeros(len(ids), 3, 32, 32, dtype=torch.uint8), ids, settings, seed=seed, epoch=epoch).shares_B


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 8.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    drawn = beta_quantiles(hash64(torch.arange(20_000)), alpha).double().numpy()
    assert drawn.min() >= 0 and drawn.max() <= 1
    kept = shares(Mixing(mixup=alpha), torch.arange(20_000)).numpy()
    levels = np.array([0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
    for numbers in (drawn, kept):
        below = (numbers[:, None] <= levels).mean(axis=0)
        assert below == pytest.approx(stats.beta(alpha, alpha).cdf(levels), abs=0.015)  # 4 standard deviations


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_a_quantile_is_scipys(alpha: float) -> None:
    levels = np.array([0.0, 1e-3, 0.1, 1 / 3, 0.5, 0.77, 0.999])
    numbers = (levels * 2.0**64).astype(np.uint64).view(np.int64)
    found = beta_quantiles(torch.from_numpy(numbers), alpha).double().numpy()
    assert found == pytest.approx(stats.beta(alpha, alpha).ppf(levels), abs=2e-4)
    assert beta_quantiles(torch.tensor([-1]), alpha).item() == pytest.approx(1, abs=1e-2)


def test_mixup_is_the_weighted_mean_with_the_next_image_the_last_with_the_first() -> None:
    pixels = images(64)
    mixed, kept = mix(pixels, IDS, MIXUP, seed=1, epoch=2)
    assert mixed.dtype == kept.dtype == torch.float32
    weights = kept.double().view(-1, 1, 1, 1)
    expected = weights * pixels + (1 - weights) * pixels[[*range(1, 64), 0]]
    assert torch.allclose(mixed.double(), expected, atol=1e-4)
    assert ((0.01 < kept) & (kept < 0.99)).sum() > 10


def test_cutmix_is_a_box_of_the_next_image_and_its_share_is_the_exact_one() -> None:
    pixels = images(64)
    mixed, kept = mix(pixels, IDS, CUTMIX, seed=1, epoch=2)
    partners = pixels.roll(-1, 0)
    foreign = mixed != pixels
    assert torch.equal(torch.where(foreign, partners, pixels).float(), mixed)
    for image in range(64):
        inside = foreign[image].all(0)
        assert torch.equal(inside, foreign[image].any(0))
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)  # a box
        assert kept[image].item() == pytest.approx(1 - inside.sum().item() / (12 * 20), abs=1e-7)
    assert 0 < kept.min() < 0.3 and kept.max() > 0.7


def test_boxes_lie_everywhere_and_are_cut_at_the_edge() -> None:
    ids = torch.arange(4000)
    black, white = torch.zeros(1, 3, 8, 16, dtype=torch.uint8), torch.full((1, 3, 8, 16), 255, dtype=torch.uint8)
    pixels = torch.cat([black, white]).repeat(2000, 1, 1, 1)
    covered = ((mix(pixels, ids, CUTMIX, seed=0, epoch=0).images != pixels).float().mean(dim=(0, 1))).double()
    assert torch.allclose(covered, covered.flip(0, 1), atol=0.05)
    assert covered.min() > 0.1 and covered[4, 8] > covered[0, 0]


def test_a_coin_decides_where_both_are_wanted() -> None:
    pixels = images(64)
    mixed, kept = mix(pixels, IDS, BOTH, seed=1, epoch=2)
    up, up_kept = mix(pixels, IDS, Mixing(mixup=0.8), seed=1, epoch=2)
    cut, cut_kept = mix(pixels, IDS, CUTMIX, seed=1, epoch=2)
    is_up, is_cut = ((mixed == other).flatten(1).all(1) for other in (up, cut))
    assert (is_up | is_cut).all()
    assert 20 < is_cut.sum() < 44
    for chosen in (is_up, is_cut):  # the coin says nothing about the share
        assert min((kept[chosen] < 0.5).sum(), (kept[chosen] > 0.5).sum()) > 3
    assert torch.equal(kept, torch.where(is_cut, cut_kept, up_kept))


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH])
def test_a_share_belongs_to_seed_epoch_and_sample_not_to_the_batch(settings: Mixing) -> None:
    together = shares(settings, IDS)
    assert torch.equal(shares(settings, IDS[[5, 40, 7]]), together[[5, 40, 7]])
    assert not torch.equal(shares(settings, IDS, epoch=3), together)
    assert not torch.equal(shares(settings, IDS, seed=2), together)
    both = shares(settings, IDS, epoch=torch.tensor([2] * 32 + [3] * 32))
    assert torch.equal(both, torch.cat([together[:32], shares(settings, IDS, epoch=3)[32:]]))


def test_mixing_moves_no_generator_and_no_mask() -> None:
    state, mask = torch.get_rng_state(), RandomMask().draw(IDS, (4, 4), seed=1, epoch=2)
    before = images(64)
    mix(pixels := before.clone(), IDS, BOTH, seed=1, epoch=2)
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mask.positions_BM, RandomMask().draw(IDS, (4, 4), seed=1, epoch=2).positions_BM)


def test_an_image_alone_stays_itself() -> None:
    pixels = images(1)
    for settings in (MIXUP, CUTMIX):
        assert torch.equal(mix(pixels, IDS[:1], settings, seed=1, epoch=2).images, pixels.float())


def test_the_loss_is_cross_entropy_against_both_labels_by_their_shares() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]], requires_grad=True)
    labels, kept = torch.tensor([0, 1, 2]), torch.tensor([0.75, 0.5, 0.0])
    soft = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    loss = mixed_cross_entropy(scores, labels, kept)
    assert loss.item() == pytest.approx(F.cross_entropy(scores, soft).item(), abs=1e-6)
    loss.backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, (scores.detach().softmax(1) - soft) / 3, atol=1e-6)
    golden = mixed_cross_entropy(
        torch.tensor([[0.0, 1.0]]).repeat(2, 1), torch.tensor([0, 1]), torch.tensor([1.0, 0.0])
    )
    assert golden.item() == pytest.approx(np.log1p(np.e), abs=1e-6)  # both are of class 0
    assert mixed_cross_entropy(scores, labels, torch.ones(3)).item() == F.cross_entropy(scores, labels).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_and_mixed_targets_are_timms(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = 3 * torch.randn(2, 7, generator=generator), torch.tensor([6, 2])
    share = 0.3  # timm mixes with the batch turned round: of two images that is the next one, as here
    expected = SoftTargetCrossEntropy()(scores, mixup_target(labels, 7, lam=share, smoothing=smoothing))
    loss = mixed_cross_entropy(scores, labels, torch.full((2,), share), smoothing)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_step_that_is_only_counted_leaves_later_shares_alone() -> None:
    alpha = 0.37  # of no other test
    with FakeTensorMode():
        assert beta_quantiles(torch.arange(5), alpha).shape == (5,)
    assert type(beta_quantiles(torch.arange(5), alpha)) is torch.Tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_mixes_as_the_cpu() -> None:
    pixels = images(64)
    on_cpu, on_gpu = (
        mix(pixels.to(device), IDS.to(device), BOTH, seed=1, epoch=torch.full_like(IDS, 2).to(device))
        for device in ("cpu", "cuda")
    )
    assert torch.equal(on_cpu.shares_B, on_gpu.shares_B.cpu())
    assert torch.allclose(on_cpu.images, on_gpu.images.cpu(), atol=1e-4)
