"""Small shard sets of real tars: 37 JPEGs of several sizes in 4 shards, with labels and without."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.shards.shardset import ShardSet, open_shards

NUM_SAMPLES = 37


def image_bytes(number: int, size: tuple[int, int], kind: str = "JPEG") -> bytes:
    """Encode a smooth picture of (H, W) that differs by ``number``."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    planes = [(rows * (3 + number % 5) + columns * k + 37 * number) % 256 for k in (1, 4, 7)]
    stream = io.BytesIO()
    Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def write_set(root: Path, labels: str, images: int = NUM_SAMPLES, shard_samples: int = 10) -> ShardSet:
    """Write class folders with images of 16 x 16 and larger ones, and shard them."""
    for number in range(images):
        folder = root / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (16, 16) if number % 2 else (20 + number, 41 - number % 20)
        (folder / f"{number:03d}.jpg").write_bytes(image_bytes(number, size))
    options = ShardOptions(
        source=str(root / "images"), out=str(root / "set"), labels=labels, shard_samples=shard_samples, workers=0
    )
    shard_corpus(options)
    return open_shards(root / "set", "train")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A labelled set; read only."""
    return write_set(tmp_path_factory.mktemp("labelled"), "folders")


@pytest.fixture(scope="session")
def bare_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A set without labels; read only."""
    return write_set(tmp_path_factory.mktemp("bare"), "none")


@pytest.fixture
def make_set() -> Callable[..., ShardSet]:
    """``write_set``, for a test that damages its set."""
    return write_set


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    """``image_bytes``: (number, (H, W), kind) to bytes."""
    return image_bytes
