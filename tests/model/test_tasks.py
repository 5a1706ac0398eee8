"""Tasks: the analytic first losses, loss on corrupted patches alone, and a step that learns."""

import math

import pytest
import torch
from torch import nn

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.masking import RandomMask
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
    positions = task.settings.mask.draw(batch.ids, task.vit.num_patches, seed=0, epoch=0).positions_BM
    truth, predictions, _ = task.predict(batch)
    assert truth.shape[:2] == predictions.shape[:2] == positions.shape == (6, 8)
    for image in range(6):
        for row, position in enumerate(positions[image].tolist()):
            top, left = 2 * (position // 4), 2 * (position % 4)
            assert torch.equal(truth[image, row], batch.images[image, :, top : top + 2, left : left + 2])


def test_masked_patches_do_not_leak_their_pixels_into_predictions(batch: Batch) -> None:
    task = masked(Pixels(), RandomMask(masked=1, other=0)).eval()
    nn.init.normal_(task.head.weight)
    positions = task.settings.mask.draw(batch.ids, 16, seed=0, epoch=0).positions_BM
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
    assert losses[-1] < losses[0] - 1


def test_metrics_leave_out_kept_patches_where_the_name_says_so(batch: Batch) -> None:
    task = masked(mask=RandomMask(masked=0, other=0))
    nn.init.normal_(task.head.weight)
    metrics = task(batch).metrics
    assert metrics["accuracy_replaced"].isnan()  # every corrupted patch is a kept one
    assert not metrics["accuracy"].isnan()


def test_a_target_that_does_not_divide_the_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not divide the patch size"):
        masked(DownsizedColors(side=4))
