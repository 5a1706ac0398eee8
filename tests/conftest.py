"""What several test folders need: the real images, and quiet, repeatable runs."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

# read by torch when it is imported; processes started by tests inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real images: $MPP_TEST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("MPP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set MPP_TEST_DATA to a folder with cifar10/ and odd-images/")
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 8 x 8 images, 60 to train on and 31 to test on; the class is one of 3 hues. Read only."""
    from mpp.shards.engines import shard_corpus
    from mpp.shards.layout import ShardOptions

    root = tmp_path_factory.mktemp("tiny")
    random = np.random.RandomState(0)
    for split, count in (("train", 60), ("test", 31)):
        for number in range(count):
            pixels = random.randint(0, 120, (8, 8, 3)).astype(np.uint8)
            pixels[..., number % 3] += 100
            folder = root / "images" / split / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    shard_corpus(ShardOptions(source=str(root / "images"), out=root / "set", shard_samples=10, workers=0))
    return root / "set"
