"""RandAugment follows from integers alone; its operations agree with Pillow and torchvision, and with their ranges."""

import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mpp.config import dump, parse, resolve
from mpp.errors import ConfigError
from mpp.shards.shardset import ShardSet
from mpp.stream.augment import DRAWS_PER_OP, OPERATIONS, OperationDraw, RandAugment, augment_draws, rand_augment
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.views import ViewConfig, train_view, view_draws

IDS = np.arange(300, dtype=np.int64)
STRONG = RandAugment(num_ops=2, magnitude=10)
UP, DOWN = OperationDraw(1, 0.5, 0.5), OperationDraw(-1, 0.5, 0.5)


@pytest.fixture
def pixels() -> Tensor:
    """A smooth image with noise, of 40 x 56 pixels, whose values begin at 20 and do not reach 255."""
    noise = torch.randint(0, 60, (3, 40, 56), generator=torch.Generator().manual_seed(0))
    waves = 90 + 70 * torch.sin(torch.arange(40)[:, None] / 9 + torch.arange(56) / 7 + torch.arange(3)[:, None, None])
    return (noise + waves).clamp(20, 230).byte()


def pillow(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def sheared(pixels: Tensor, shear: list[float]) -> Tensor:
    result: Tensor = F.affine(pixels, 0.0, [0, 0], 1.0, shear, fill=[128.0] * 3, center=[0.0, 0.0])
    return result


def translated(pixels: Tensor, right: int, down: int) -> Tensor:
    result: Tensor = F.affine(pixels, 0.0, [right, down], 1.0, [0.0, 0.0], fill=[128.0] * 3)
    return result


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_is_torchvisions_with_gray_around(pixels: Tensor, sign: int) -> None:
    draw, slope = OperationDraw(sign, 0, 0), sign * math.degrees(math.atan(0.3))
    expected = {
        "rotate": F.rotate(pixels, -sign * 30.0, fill=[128.0] * 3),
        "shear_x": sheared(pixels, [slope, 0]),
        "shear_y": sheared(pixels, [0, slope]),
        "translate_x": translated(pixels, -sign * 25, 0),  # 100 of 224 pixels
        "translate_y": translated(pixels, 0, -sign * 18),
    }
    for name, oracle in expected.items():
        assert torch.equal(OPERATIONS[name](pixels, 1.0, draw), oracle), name


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("rotate", lambda image: image.rotate(-30, fillcolor=(128,) * 3)),
        ("autocontrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
        ("color", lambda image: ImageEnhance.Color(image).enhance(1.9)),
        ("contrast", lambda image: ImageEnhance.Contrast(image).enhance(1.9)),
        ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(1.9)),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
        ("posterize", lambda image: ImageOps.posterize(image, 4)),
        ("solarize", ImageOps.invert),
        (
            "solarize_add",
            lambda image: image.point([min(255, value + 110 * (value < 128)) for value in range(256)] * 3),
        ),
    ],
)
def test_at_magnitude_10_an_operation_is_pillows_at_the_end_of_its_range(
    pixels: Tensor, name: str, oracle: Callable[[Image.Image], Image.Image]
) -> None:
    seen, expected = OPERATIONS[name](pixels, 1.0, UP), tensor(oracle(pillow(pixels)))
    assert (seen.int() - expected.int()).abs().max() <= 1 + (name == "contrast")  # gray is rounded otherwise
    assert (seen != pixels).float().mean() > 0.3


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_sharpness_and_solarize_are_torchvisions(pixels: Tensor, strength: float) -> None:
    sharp = F.adjust_sharpness(pixels, 1 + 0.9 * strength)
    assert (OPERATIONS["sharpness"](pixels, strength, UP).int() - sharp.int()).abs().max() <= (0 < strength < 1)
    solarized = F.solarize(pixels, min(255.0, 256 * (1 - strength)))
    assert torch.equal(OPERATIONS["solarize"](pixels, strength, UP), solarized)


@pytest.mark.parametrize(
    ("down", "right", "rows", "columns"),
    [(0.5, 0.5, (13, 27), (21, 35)), (0, 0, (0, 7), (0, 7)), (0.999, 0.999, (32, 40), (48, 56))],
)
def test_cutout_is_a_gray_square_cut_at_the_edge(
    pixels: Tensor, down: float, right: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    expected = pixels.clone()
    expected[:, slice(*rows), slice(*columns)] = 128
    assert torch.equal(OPERATIONS["cutout"](pixels, 1.0, OperationDraw(1, down, right)), expected)


def test_at_224_pixels_lengths_are_those_of_big_vision() -> None:
    black = torch.zeros(3, 224, 224, dtype=torch.uint8)
    for name in ("translate_x", "translate_y"):
        assert (OPERATIONS[name](black, 1.0, UP) == 128).sum() == 3 * 100 * 224
    assert (OPERATIONS["cutout"](black, 1.0, UP) == 128).sum() == 3 * 80 * 80


def test_operations_do_nothing_at_magnitude_0_and_more_at_higher_ones(pixels: Tensor) -> None:
    for name, operation in OPERATIONS.items():
        for draw in (UP, DOWN):
            changes = [(operation(pixels, s, draw).int() - pixels.int()).abs().sum().item() for s in (0, 0.5, 1)]
            if name in ("autocontrast", "equalize"):
                assert 0 < changes[0] == changes[1] == changes[2], name
            else:
                assert changes[0] == 0, name
                assert changes[0] < changes[1] < changes[2] or name == "identity", name


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_any_image_and_leaves_it_as_it_was(name: str, shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, *reversed(shape)), dtype=torch.uint8).transpose(1, 2).flip(-1)
    before = pixels.clone()
    for draw in (UP, OperationDraw(-1, 0.0, 0.999)):
        seen = OPERATIONS[name](pixels, 0.7, draw)
        assert seen.shape == (3, *shape) and seen.dtype == torch.uint8
        assert torch.equal(seen, OPERATIONS[name](before.contiguous(), 0.7, draw))
    assert torch.equal(pixels, before)


def test_draws_choose_each_operation_and_each_sign(pixels: Tensor) -> None:
    one, count = RandAugment(num_ops=1, magnitude=10), len(OPERATIONS)
    for number, operation in enumerate(OPERATIONS.values()):
        for sign, draw in ((0.49, OperationDraw(-1, 0.2, 0.7)), (0.5, OperationDraw(1, 0.2, 0.7))):
            row = np.array([(number + 0.5) / count, sign, 0.2, 0.7])
            assert torch.equal(rand_augment(pixels, one, row), operation(pixels, 1.0, draw))


def test_operations_follow_each_other(pixels: Tensor) -> None:
    rows = augment_draws(0, 0, IDS, STRONG)
    for row in rows[:20]:
        once = [RandAugment(num_ops=1, magnitude=10)] * 2
        first = rand_augment(pixels, once[0], row[:DRAWS_PER_OP])
        assert torch.equal(rand_augment(first, once[1], row[DRAWS_PER_OP:]), rand_augment(pixels, STRONG, row))
    assert torch.equal(rand_augment(pixels, RandAugment(), rows[0]), pixels)


def test_draws_are_even_and_belong_to_seed_epoch_and_sample_alone() -> None:
    draws = np.concatenate([augment_draws(seed, epoch, IDS, STRONG) for seed in (0, 1) for epoch in (0, 1)])
    assert draws.shape == (1200, 2 * DRAWS_PER_OP)
    assert len(np.unique(draws)) == draws.size
    assert 0 <= draws.min() and draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / len(draws))
    assert np.array_equal(augment_draws(1, 1, IDS[7:9], STRONG), draws[-len(IDS) :][7:9])
    assert not np.isin(
        draws, np.concatenate([view_draws(seed, np.full_like(IDS, epoch), IDS) for seed in (0, 1) for epoch in (0, 1)])
    ).any()
    fewer = augment_draws(0, 0, IDS, RandAugment(num_ops=1))
    assert np.array_equal(fewer, draws[: len(IDS), :DRAWS_PER_OP])


def test_samples_of_two_epochs_can_stand_in_one_batch() -> None:
    epochs = np.array([3, 3, 4], dtype=np.int64)
    mixed = augment_draws(5, epochs, IDS[:3], STRONG)
    assert np.array_equal(mixed[:2], augment_draws(5, 3, IDS[:2], STRONG))
    assert np.array_equal(mixed[2:], augment_draws(5, 4, IDS[2:3], STRONG))


def test_no_global_generator_is_read_or_moved(pixels: Tensor) -> None:
    state = torch.get_rng_state()
    seen = [rand_augment(pixels, STRONG, row) for row in augment_draws(0, 0, IDS[:40], STRONG)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = [rand_augment(pixels, STRONG, row) for row in augment_draws(0, 0, IDS[:40], STRONG)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in seen}) > 30


def test_a_train_view_is_augmented_after_its_own_crop_and_flip(make_image: Callable[..., bytes]) -> None:
    image, plain = make_image(1, (60, 80)), ViewConfig()
    augmented = resolve(ViewConfig, {"augment": dump(STRONG)})
    rows, more = view_draws(0, np.zeros_like(IDS[:20]), IDS[:20]), augment_draws(0, 0, IDS[:20], STRONG)
    for row, extra in zip(rows, more, strict=True):
        view = train_view(image, plain, (24, 32), row)
        seen = train_view(image, augmented, (24, 32), np.concatenate([row, extra]))
        assert np.array_equal(seen, rand_augment(torch.from_numpy(view.copy()), STRONG, extra).numpy())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_augments_each_sample_by_its_own_draws_whatever_the_workers(shards: ShardSet, workers: int) -> None:
    streams = [
        TrainStream(
            shards, views, (12, 16), seed=5, global_batch=8, micro_batch=4, settings=StreamConfig(workers=number)
        )
        for views, number in ((ViewConfig(), 0), (ViewConfig(augment=STRONG), workers))
    ]
    changed = 0
    for plain, augmented in islice(zip(*streams, strict=False), 12):
        assert torch.equal(plain.ids, augmented.ids)
        rows = augment_draws(5, plain.epochs.numpy(), plain.ids.numpy(), STRONG)
        for view, row, seen in zip(plain.images, rows, augmented.images, strict=True):
            assert torch.equal(seen, rand_augment(view, STRONG, row))
            changed += not torch.equal(seen, view)
    assert changed > 30
    for stream in streams:
        stream.close()


def test_settings_come_from_yaml_and_from_the_command_line() -> None:
    words = ["augment.num_ops=2", "augment.magnitude=9"]
    assert parse(ViewConfig, words, prog="x", about="x").augment == RandAugment(num_ops=2, magnitude=9)
    assert resolve(ViewConfig, {"augment": {"num_ops": 2}}).augment == STRONG
    assert ViewConfig().augment.num_ops == 0
    for wrong in ({"magnitude": 11}, {"num_ops": -1}):
        with pytest.raises(ConfigError, match=rf"augment\.{next(iter(wrong))}"):
            resolve(ViewConfig, {"augment": wrong})
