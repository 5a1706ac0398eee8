"""Small corpora made on the spot."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """Return a function that makes a noisy RGB JPEG, another for every number."""

    def make(number: int) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24 + number % 5, 3), np.uint8)
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "JPEG")
        return target.getvalue()

    return make


@pytest.fixture
def corpus(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Callable[..., Path]:
    """Return a function that writes JPEGs under the given relative names and returns their folder."""

    def write(*names: str, folder: str = "source") -> Path:
        root = tmp_path / folder
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(jpeg(number))
        return root

    return write
