"""Tasks: the analytic first losses, loss on corrupted patches alone, and a step that learns."""

import math
from dataclasses import asdict

import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.encoders import build_encoder
from mpp.model.masking import BlockMask, RandomMask
from mpp.model.mixing import Mixing, mix
from mpp.model.targets import DownsizedColors, MeanColor, Pixels, Target
from mpp.model.tasks import Classification, ClassificationConfig, MaskedPatches, MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch

VIT = resolve(
    VitConfig,
    {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 2, "width": 16, "depth": 2, "heads": 2},
)


@pytest.fixture
def batch() -> Batch:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6), torch.zeros(6, dtype=torch.int64))


def masked(target: Target | None = None, mask: RandomMask | None = None) -> MaskedPatches:
    torch.manual_seed(0)
    return MaskedPatches(Vit(VIT), MaskedPatchesConfig(target=target or MeanColor(), mask=mask or RandomMask()), seed=0)


@pytest.mark.parametrize("target", [MeanColor(), DownsizedColors(side=2)])
def test_the_first_loss_of_masked_patch_prediction_is_ln_512(batch: Batch, target: Target) -> None:
    assert masked(target)(batch).loss.item() == pytest.approx(math.log(512), abs=1e-5)


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
def test_the_first_loss_of_classification_is_ln_k(batch: Batch, num_classes: int) -> None:
    task = build_task(ClassificationConfig(), Vit(VIT), num_classes=num_classes, seed=0)
    assert task(batch).loss.item() == pytest.approx(math.log(num_classes), abs=1e-5)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.2), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)])
def test_the_first_loss_of_mixed_images_is_ln_k_too_and_reaches_every_parameter(batch: Batch, mixing: Mixing) -> None:
    task = build_task(ClassificationConfig(mixing=mixing), Vit(VIT), num_classes=3, seed=0)
    assert task(batch).loss.item() == pytest.approx(math.log(3), abs=1e-6)
    nn.init.normal_(task.head[-1].weight)
    task(batch).loss.backward()
    assert all(parameter.grad is not None for parameter in task.head.parameters())
    assert task.vit.timm.patch_embed.proj.weight.grad.abs().sum() > 0


def test_images_are_mixed_in_training_alone_by_seed_and_epoch(batch: Batch) -> None:
    plain, mixed, other = (
        build_task(ClassificationConfig(mixing=mixing), Vit(VIT), num_classes=3, seed=seed)
        for mixing, seed in ((Mixing(), 0), (Mixing(mixup=1.0), 0), (Mixing(mixup=1.0), 1))
    )
    nn.init.normal_(plain.head[-1].weight)
    for task in (mixed, other):
        task.load_state_dict(plain.state_dict())
    later = batch._replace(epochs=torch.ones_like(batch.epochs))
    losses = {task(moved).loss.item() for task in (plain, mixed, other) for moved in (batch, later)}
    assert len(losses) == 5  # plain images are the same in every epoch
    assert plain.eval()(batch).loss.item() == mixed.eval()(batch).loss.item()


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=0.8, cutmix=1.0)])
def test_labels_are_smoothed_in_training_alone(batch: Batch, mixing: Mixing) -> None:
    task = Classification(Vit(VIT), nn.Linear(16, 3), mixing, seed=0, smoothing=0.2)
    plain = Classification(task.vit, task.head, mixing, seed=0)
    assert task(batch).loss.item() != plain(batch).loss.item()
    if not mixing.mixup:
        expected = LabelSmoothingCrossEntropy(0.2)(task.scores(batch.images), batch.labels)
        assert task(batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert task.eval()(batch).loss.item() == plain.eval()(batch).loss.item()
    task.head.requires_grad_(False).weight.zero_()
    task.head.bias.zero_()
    assert task.train()(batch).loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_accuracy_of_a_mixed_image_counts_its_larger_part(batch: Batch) -> None:
    task = Classification(Vit(VIT), nn.Linear(16, 3), Mixing(mixup=1.0), seed=0)
    nn.init.zeros_(task.head.weight)
    task.head.bias.data = torch.tensor([1.0, 0.0, 0.0])  # finds class 0 everywhere
    shares = mix(batch.images, batch.ids, task.mixing, seed=0, epoch=0).shares_B.tolist()
    pairs = [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 0)]
    hits = sum((own if share > 0.5 else other) == 0 for (own, other), share in zip(pairs, shares, strict=True))
    assert hits not in (2, sum((own, other).count(0) for own, other in pairs) - hits)
    assert task(batch).metrics["accuracy"].item() == pytest.approx(hits / 6)


def test_the_pretraining_head_of_classification_has_one_hidden_layer_with_tanh() -> None:
    task = build_task(ClassificationConfig(), Vit(VIT), num_classes=3, seed=0)
    assert isinstance(task, Classification)
    assert [type(layer) for layer in task.head] == [nn.Linear, nn.Tanh, nn.Linear]


def test_an_uncorrupted_patch_does_not_enter_the_loss_as_a_target(batch: Batch) -> None:
    task = masked(Pixels())
    positions = task.settings.mask.draw(batch.ids, task.vit.grid, seed=0, epoch=0).positions_BM
    truth, predictions, _ = task.predict(batch)
    assert truth.shape[:2] == predictions.shape[:2] == positions.shape == (6, 8)
    for image in range(6):
        for row, position in enumerate(positions[image].tolist()):
            top, left = 2 * (position // 4), 2 * (position % 4)
            assert torch.equal(truth[image, row], batch.images[image, :, top : top + 2, left : left + 2])


def test_masked_patches_do_not_leak_their_pixels_into_predictions(batch: Batch) -> None:
    task = masked(Pixels(), RandomMask(masked=1, other=0)).eval()
    nn.init.normal_(task.head.weight)
    positions = task.settings.mask.draw(batch.ids, (4, 4), seed=0, epoch=0).positions_BM
    other = batch.images.clone()
    for image in range(6):
        for position in positions[image].tolist():
            top, left = 2 * (position // 4), 2 * (position % 4)
            other[image, :, top : top + 2, left : left + 2] = 255 - other[image, :, top : top + 2, left : left + 2]
    assert torch.equal(task.predict(batch)[1], task.predict(batch._replace(images=other))[1])


def test_a_few_steps_lower_the_loss_and_reach_every_parameter(batch: Batch) -> None:
    task = masked()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        output = task(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
        missing = [name for name, parameter in task.named_parameters() if parameter.grad is None]
        assert not missing
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5


def test_metrics_leave_out_kept_patches_where_the_name_says_so(batch: Batch) -> None:
    task = masked(mask=RandomMask(masked=0, other=0))
    nn.init.normal_(task.head.weight)
    metrics = task(batch).metrics
    assert metrics["accuracy_replaced"].isnan()  # every corrupted patch is a kept one
    assert not metrics["accuracy"].isnan()


def test_a_target_that_does_not_divide_the_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not divide the patch size"):
        masked(DownsizedColors(side=4))


FAMILIES: dict[str, dict[str, object]] = {
    "parallel, norms of queries, no biases": {"parallel": True, "qk_norm": True, "bias": False, "pool": "mean"},
    "attention pooling": {"pool": "map"},
    "patches of one pixel": {"patch_size": 1, "image_size": (4, 4)},
    "hybrid": {"name": "vit_tiny_r_s16_p8_224", "image_size": (64, 64), "patch_size": None, "pool": "mean"},
}


def in_family(family: str) -> tuple[MaskedPatches, Batch]:
    torch.manual_seed(0)
    vit = Vit(resolve(VitConfig, {**asdict(VIT), **FAMILIES[family]}))
    images = torch.randint(0, 256, (6, 3, *vit.settings.image_size), dtype=torch.uint8)
    zeros = torch.zeros(6, dtype=torch.int64)
    task = build_task(MaskedPatchesConfig(mask=BlockMask()), vit, num_classes=None, seed=0)
    assert isinstance(task, MaskedPatches)
    return task, Batch(images, torch.arange(6) % 3, torch.arange(6), zeros)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_patch_prediction_learns_in_every_family_and_every_trained_parameter_has_a_gradient(family: str) -> None:
    task, batch = in_family(family)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        loss = task(batch).loss
        loss.backward()
        if step == 1:  # the head is zero before the first
            trained = [name for name, value in task.named_parameters() if value.requires_grad]
            idle = [name for name in trained if not task.get_parameter(name).grad.abs().sum() > 0]
            assert all(name.endswith("qkv.bias") for name in idle)
            assert all(task.get_parameter(name).grad is not None for name in trained)  # or DDP would not end
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(512), abs=1e-5)
    assert losses[-1] < losses[0] - 0.5


def test_a_prediction_of_a_hybrid_is_of_the_area_of_its_token() -> None:
    task, batch = in_family("hybrid")
    truth, _, corruption = task.predict(batch)
    assert truth.shape == (6, 2, 3, 32, 32)
    for image in range(6):
        for number, place in enumerate(corruption.positions_BM[image].tolist()):
            top, left = 32 * (place // 2), 32 * (place % 2)
            assert torch.equal(truth[image, number], batch.images[image, :, top : top + 32, left : left + 32])


def test_attention_pooling_waits_for_labels_as_it_was_made() -> None:
    task, batch = in_family("attention pooling")
    before = {name: value.clone() for name, value in task.vit.timm.attn_pool.state_dict().items()}
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    for _ in range(2):
        task(batch).loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in task.vit.timm.attn_pool.state_dict().items())
    assert not any(value.requires_grad for value in task.vit.timm.attn_pool.parameters())
    vit = Vit(task.vit.settings)
    learner = build_task(ClassificationConfig(), vit, num_classes=3, seed=0)
    nn.init.normal_(learner.head[-1].weight)
    learner(batch).loss.backward()
    assert all(value.grad is not None for value in learner.parameters())
    assert vit.timm.attn_pool.latent.grad.abs().sum() > 0


def test_a_resnet_learns_labels_and_is_refused_for_patches(batch: Batch) -> None:
    torch.manual_seed(0)
    resnet = build_encoder(resolve(VitConfig, {"name": "resnetv2_50x1_bit", "image_size": (8, 8), "pool": "mean"}))
    with pytest.raises(ConfigError, match="no patch tokens"):
        build_task(MaskedPatchesConfig(), resnet, num_classes=3, seed=0)
    task = build_task(ClassificationConfig(), resnet, num_classes=3, seed=0)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = task(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(3), abs=1e-5)
    assert losses[-1] < losses[0]
    assert all(value.grad is not None for value in task.parameters())
