"""What tests of fine-tuning share: a small transfer; labelled images in the layouts of the Hub."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

datasets.disable_progress_bars()

FAST = ["steps=2", "global_batch=12", "stream.workers=0", "view.crop=pad", "backbone=scratch"]
FAST += ["vit.name=vit_tiny_patch16_224", "vit.image_size=[8,8]", "vit.patch_size=2", "vit.width=16"]
FAST += ["vit.depth=1", "vit.heads=2", "vit.pool=mean"]


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """Return a function that makes an image of 8 x 8 noisy pixels in the hue of its number % 3."""

    def make(number: int) -> bytes:
        pixels = np.random.RandomState(number).randint(0, 120, (8, 8, 3)).astype(np.uint8)
        pixels[..., number % 3] += 100
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "PNG")
        return target.getvalue()

    return make


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have ``datasets`` keep what it loads in a folder of this test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def parquet(tmp_path: Path, png: Callable[[int], bytes], hub_cache: Path) -> Callable[..., Path]:
    """Return a function that writes parquet files as they lie on the Hub, and returns their folder.

    Each split has the labels given for it, by number of the image, of the type ``feature``.
    """

    def save(splits: dict[str, list[Any]], feature: Any, *, label: str = "label", image: str = "image") -> Path:
        folder = tmp_path / "source" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        features = datasets.Features({image: datasets.Image(), label: feature})
        begin = 0
        for split, labels in splits.items():
            images = [{"bytes": png(begin + number), "path": None} for number in range(len(labels))]
            begin += 3 * len(labels)
            rows = datasets.Dataset.from_dict({image: images, label: labels}, features=features)
            rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder.parent

    return save


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the command line of two steps on a labelled source of three classes."""

    def line(source: Path | str, *more: str) -> list[str]:
        given = [f"data.source={source}", "data.classes=3", f"shards={tmp_path / 'set'}", f"out={tmp_path / 'out'}"]
        return [*FAST, *given, *more]

    return line


@pytest.fixture
def tree(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A transfer from scratch of three steps, as in a configuration file."""
    return {
        "backbone": "scratch",
        "shards": str(tiny_shards),
        "out": str(tmp_path / "out"),
        "vit": tiny_vit,
        "view": {"crop": "pad"},
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "steps": 3,
        "global_batch": 12,
        "stream": {"workers": 0},
    }
