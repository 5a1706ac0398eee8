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
from mpp.stream.views import NUM_DRAWS, ViewConfig, decode, eval_view, train_view, view_draws

MakeImage = Callable[..., bytes]
IDS = np.arange(200, dtype=np.int64)


def pillow_pixels(image: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)).convert("RGB"))).permute(2, 0, 1)


def draws_with(area: float, ratio: float, down: float, right: float, mirror: float) -> np.ndarray:
    tries = (NUM_DRAWS - 3) // 2
    return np.array([area] * tries + [ratio] * tries + [down, right, mirror])


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_a_view_has_the_size_asked_for_and_follows_from_its_integers(make_image: MakeImage, crop: str) -> None:
    view = resolve(ViewConfig, {"crop": crop})
    image = make_image(1, (40, 61))
    for row in view_draws(0, 0, IDS[:20]):
        first = train_view(image, view, (24, 32), row)
        torch.manual_seed(int(row[0] * 1000))
        assert first.shape == (3, 24, 32) and first.dtype == torch.uint8
        assert torch.equal(first, train_view(image, view, (24, 32), row))


def test_draws_are_even_and_differ_by_seed_epoch_and_sample() -> None:
    draws = np.concatenate([view_draws(seed, epoch, IDS) for seed in (0, 1) for epoch in (0, 1)])
    assert len(np.unique(draws)) == draws.size
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / len(draws))
    assert np.array_equal(view_draws(1, 1, IDS[7:9]), draws[-len(IDS) :][7:9])


def test_an_image_of_the_right_size_is_left_alone_in_evaluation(make_image: MakeImage) -> None:
    png = make_image(3, (32, 48), "PNG")
    assert torch.equal(eval_view(png, ViewConfig(crop_fraction=0.5), (32, 48)), pillow_pixels(png))


def test_the_evaluation_view_is_the_middle(make_image: MakeImage) -> None:
    pixels = pillow_pixels(png := make_image(0, (60, 100), "PNG"))
    assert torch.equal(eval_view(png, ViewConfig(crop_fraction=0.5), (30, 30)), pixels[:, 15:45, 35:65])
    whole = transforms.resize(pixels[:, :, 20:80], [30, 30], antialias=True)
    assert torch.equal(eval_view(png, ViewConfig(crop_fraction=1.0), (30, 30)), whole)


def test_a_random_crop_is_torchvisions_resized_crop(make_image: MakeImage) -> None:
    image = make_image(2, (80, 80))
    view = ViewConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    seen = train_view(image, view, (24, 24), draws_with(0.5, 0.5, 0.5, 0.999, 0.9))
    expected = transforms.resized_crop(pillow_pixels(image), 20, 40, 40, 40, [24, 24], antialias=True)
    assert (seen.int() - expected.int()).abs().max() <= 2  # two JPEG decoders
    mirrored = train_view(image, view, (24, 24), draws_with(0.5, 0.5, 0.5, 0.999, 0.1))
    assert torch.equal(mirrored, seen.flip(-1))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_shape_of_image_has_views(height: int, width: int, seed: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (9, 8, 7)).save(stream, "PNG")
    row = view_draws(seed, 0, IDS[:1])[0]
    for crop in (ViewConfig(), ViewConfig(crop="pad")):
        view = train_view(stream.getvalue(), crop, (16, 8), row)
        assert view.shape == (3, 16, 8) and view.flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]


@pytest.mark.parametrize(("chance", "shift"), [(0.0, -4), (0.5, 0), (0.9999, 4)])
def test_a_shifted_view_moves_by_an_eighth_at_most_and_mirrors_its_edge(
    make_image: MakeImage, chance: float, shift: int
) -> None:
    pixels = pillow_pixels(png := make_image(4, (32, 32), "PNG"))
    view = train_view(png, ViewConfig(crop="pad", flip=False), (32, 32), draws_with(0, 0, chance, 0.5, 0))
    padded = transforms.pad(pixels, [0, 4], padding_mode="reflect")
    assert torch.equal(view, padded[:, 4 + shift : 36 + shift])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_read_by_pillow(make_image: MakeImage, kind: str) -> None:
    image = make_image(5, (9, 13), kind)
    assert torch.equal(decode(image), pillow_pixels(image))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_mode_become_rgb(make_image: MakeImage, mode: Literal["L", "CMYK", "RGB"]) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(make_image(6, (33, 21), "PNG"))).convert(mode).save(stream, "JPEG", quality=95)
    assert (decode(stream.getvalue()).int() - pillow_pixels(stream.getvalue()).int()).abs().max() <= 2


@pytest.mark.parametrize("damage", [lambda image: image[:200], lambda image: b"<html>" + image, lambda image: b""])
def test_what_is_no_image_raises(make_image: MakeImage, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises((OSError, ValueError)):
        decode(damage(make_image(7, (64, 64))))


def test_real_photographs_decode_as_by_pillow(data: Path) -> None:
    paths = sorted((data / "imagenette" / "test").glob("*/*.JPEG"))[::100]
    assert paths
    for path in paths:
        image = path.read_bytes()
        assert (decode(image).int() - pillow_pixels(image).int()).abs().float().mean() < 0.1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="crop_fraction"):
        resolve(ViewConfig, {"crop_fraction": 1.5})
    with pytest.raises(ConfigError, match="crop_scale"):
        resolve(ViewConfig, {"crop_scale": [0, 1]})
