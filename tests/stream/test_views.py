"""Views are uint8 pixels that follow from integers alone, and agree with torchvision and Pillow."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.stream.views import NUM_DRAWS, Pixels, ViewConfig, decode, eval_view, jpeg_size, train_view, view_draws

MakeImage = Callable[..., bytes]
IDS = np.arange(200, dtype=np.int64)
ZEROS = np.zeros_like(IDS)


def pillow_pixels(image: bytes) -> Pixels:
    return np.array(Image.open(io.BytesIO(image)).convert("RGB")).transpose(2, 0, 1)


def rgb(image: bytes, part: int = 1) -> Pixels:
    return decode(image, part)[..., :3].transpose(2, 0, 1)


def far(some: Pixels, other: Pixels) -> int:
    return int(np.abs(some.astype(int) - other).max())


def draws_with(area: float, ratio: float, down: float, right: float, mirror: float) -> np.ndarray:
    tries = (NUM_DRAWS - 3) // 2
    return np.array([area] * tries + [ratio] * tries + [down, right, mirror])


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_a_view_has_the_size_asked_for_and_follows_from_its_integers(make_image: MakeImage, crop: str) -> None:
    view = resolve(ViewConfig, {"crop": crop})
    image = make_image(1, (40, 61))
    for row in view_draws(0, ZEROS[:20], IDS[:20]):
        first = train_view(image, view, (24, 32), row)
        torch.manual_seed(int(row[0] * 1000))
        assert first.shape == (3, 24, 32) and first.dtype == np.uint8
        assert np.array_equal(first, train_view(image, view, (24, 32), row))


def test_draws_are_even_and_differ_by_seed_epoch_and_sample() -> None:
    draws = np.concatenate([view_draws(seed, ZEROS + epoch, IDS) for seed in (0, 1) for epoch in (0, 1)])
    assert len(np.unique(draws)) == draws.size
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / len(draws))
    assert np.array_equal(view_draws(1, ZEROS[7:9] + 1, IDS[7:9]), draws[-len(IDS) :][7:9])


def test_an_image_of_the_right_size_is_left_alone_in_evaluation(make_image: MakeImage) -> None:
    png = make_image(3, (32, 48), "PNG")
    assert np.array_equal(eval_view(png, ViewConfig(crop_fraction=0.5), (32, 48)), pillow_pixels(png))


def test_the_evaluation_view_is_the_middle(make_image: MakeImage) -> None:
    pixels = pillow_pixels(png := make_image(0, (60, 100), "PNG"))
    assert np.array_equal(eval_view(png, ViewConfig(crop_fraction=0.5), (30, 30)), pixels[:, 15:45, 35:65])
    whole = transforms.resize(torch.from_numpy(pixels[:, :, 20:80].copy()), [30, 30], antialias=True)
    assert np.array_equal(eval_view(png, ViewConfig(crop_fraction=1.0), (30, 30)), whole.numpy())


def test_a_squashed_view_shows_all_sides_whatever_the_shape(make_image: MakeImage) -> None:
    pixels = pillow_pixels(png := make_image(0, (60, 100), "PNG"))
    whole, half = (ViewConfig(crop_fraction=fraction, squash=True) for fraction in (1.0, 0.5))
    expected = transforms.resize(torch.from_numpy(pixels), [30, 30], antialias=True)
    assert np.array_equal(eval_view(png, whole, (30, 30)), expected.numpy())
    assert np.array_equal(eval_view(png, half, (30, 50)), pixels[:, 15:45, 25:75])


def test_a_random_crop_is_torchvisions_resized_crop(make_image: MakeImage) -> None:
    image = make_image(2, (80, 80))
    view = ViewConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    seen = train_view(image, view, (24, 24), draws_with(0.5, 0.5, 0.5, 0.999, 0.9))
    expected = transforms.resized_crop(torch.from_numpy(pillow_pixels(image)), 20, 40, 40, 40, [24, 24], antialias=True)
    assert far(seen, expected.numpy()) <= 2  # two JPEG decoders
    mirrored = train_view(image, view, (24, 24), draws_with(0.5, 0.5, 0.5, 0.999, 0.1))
    assert np.array_equal(mirrored, seen[..., ::-1])


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_shape_of_image_has_views(height: int, width: int, seed: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (9, 8, 7)).save(stream, "PNG")
    row = view_draws(seed, ZEROS[:1], IDS[:1])[0]
    for crop in (ViewConfig(), ViewConfig(crop="pad")):
        view = train_view(stream.getvalue(), crop, (16, 8), row)
        assert view.shape == (3, 16, 8) and np.unique(view.reshape(3, -1), axis=1).ravel().tolist() == [9, 8, 7]


@pytest.mark.parametrize(("chance", "shift"), [(0.0, -4), (0.5, 0), (0.9999, 4)])
def test_a_shifted_view_moves_by_an_eighth_at_most_and_mirrors_its_edge(
    make_image: MakeImage, chance: float, shift: int
) -> None:
    pixels = pillow_pixels(png := make_image(4, (32, 32), "PNG"))
    view = train_view(png, ViewConfig(crop="pad", flip=False), (32, 32), draws_with(0, 0, chance, 0.5, 0))
    padded = np.pad(pixels, ((0, 0), (4, 4), (0, 0)), mode="reflect")
    assert np.array_equal(view, padded[:, 4 + shift : 36 + shift])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_read_by_pillow(make_image: MakeImage, kind: str) -> None:
    image = make_image(5, (9, 13), kind)
    assert np.array_equal(rgb(image), pillow_pixels(image))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_mode_become_rgb(make_image: MakeImage, mode: Literal["L", "CMYK", "RGB"]) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(make_image(6, (33, 21), "PNG"))).convert(mode).save(stream, "JPEG", quality=95)
    assert far(rgb(stream.getvalue()), pillow_pixels(stream.getvalue())) <= 2


@pytest.mark.parametrize("damage", [lambda image: image[:200], lambda image: b"<html>" + image, lambda image: b""])
def test_what_is_no_image_raises(make_image: MakeImage, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises((OSError, ValueError)):
        decode(damage(make_image(7, (64, 64))))


def test_real_photographs_decode_as_by_pillow(data: Path) -> None:
    paths = sorted((data / "imagenette" / "test").glob("*/*.JPEG"))[::100]
    assert paths
    for path in paths:
        image = path.read_bytes()
        assert np.abs(rgb(image).astype(int) - pillow_pixels(image)).mean() < 0.1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="crop_fraction"):
        resolve(ViewConfig, {"crop_fraction": 1.5})
    with pytest.raises(ConfigError, match="crop_scale"):
        resolve(ViewConfig, {"crop_scale": [0, 1]})


@pytest.mark.parametrize(("box", "part"), [(60, 1), (95, 1), (100, 2), (195, 2), (200, 4), (390, 4), (400, 8)])
def test_a_crop_that_is_made_smaller_is_decoded_smaller_where_enough_pixels_are_left(
    monkeypatch: pytest.MonkeyPatch, box: int, part: int
) -> None:
    seen = []
    monkeypatch.setattr("mpp.stream.views.decode", lambda image, part=1: (seen.append(part), decode(image, part))[1])
    share = (box / 400) ** 2
    view = ViewConfig(crop_scale=(share, share), crop_ratio=(1.0, 1.0), flip=False)
    rows, columns = np.mgrid[:400, :400] / 60
    waves = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns)], -1)
    stream = io.BytesIO()
    Image.fromarray((128 + 100 * waves).astype(np.uint8)).save(stream, "JPEG", quality=95)
    image = stream.getvalue()
    pixels = train_view(image, view, (25, 25), draws_with(0.5, 0.5, 0.5, 0.25, 0.9))
    top, left = int(0.5 * (401 - box)), int(0.25 * (401 - box))
    crop = torch.from_numpy(pillow_pixels(image))[:, top : top + box, left : left + box]
    expected = transforms.resize(crop, [25, 25], antialias=True).numpy()
    assert seen == [part]
    assert far(pixels, expected) <= 8  # a crop that lay two pixels aside would differ by more


@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(400, 300), (401, 299), (17, 9)])
def test_a_part_of_a_jpeg_has_that_size_rounded_up(make_image: MakeImage, size: tuple[int, int], part: int) -> None:
    image = make_image(1, size)
    assert jpeg_size(image) == size
    assert decode(image, part).shape[:2] == (-(-size[0] // part), -(-size[1] // part))


def test_decoding_smaller_keeps_photographs_alike(data: Path) -> None:
    paths = sorted((data / "imagenette" / "test").glob("*/*.JPEG"))[::25]
    assert paths
    view = ViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    for path in paths:
        seen = train_view(path.read_bytes(), view, (56, 56), draws_with(0.5, 0.5, 0, 0, 0.9))  # at a half, then a half
        whole = torch.from_numpy(pillow_pixels(path.read_bytes()))
        expected = transforms.resize(whole, [56, 56], antialias=True).numpy()
        assert np.abs(seen.astype(int) - expected).mean() < 2  # of 255


def test_deep_gray_is_scaled_and_what_is_transparent_is_white_as_in_sharding() -> None:
    deep, clear = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(deep, "PNG")
    Image.fromarray(np.array([[[9, 9, 9, 0], [10, 20, 30, 255]]], np.uint8)).save(clear, "PNG")
    assert rgb(deep.getvalue()).tolist() == [[[0, 100, 255]]] * 3
    assert rgb(clear.getvalue()).transpose(1, 2, 0).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_an_image_that_claims_too_many_pixels_is_not_decoded(make_image: MakeImage) -> None:
    bomb = bytearray(make_image(1, (40, 61)))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    assert jpeg_size(bytes(bomb)) == (20_000, 20_000)
    for view in (ViewConfig(), ViewConfig(crop="pad")):
        with pytest.raises(ValueError, match="20000 x 20000 pixels, at most 178,956,970"):
            train_view(bytes(bomb), view, (9000, 9000), draws_with(0.5, 0.5, 0, 0, 1))
