"""What several test folders need: the real images, and quiet, repeatable runs."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from faulty_server import FaultyServer
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
        pytest.skip(
            f"no real images at {folder}; set MPP_TEST_DATA to a folder with cifar10/, imagenette/, odd-images/"
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Hear Ctrl-C, in the processes of tests too: shells have jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shards_of_hues(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes shards of noisy 8 x 8 images, of which the class is one of 3 hues."""
    from mpp.shards.options import ShardOptions
    from mpp.shards.sharding import shard_corpus

    def make(name: str, *, seed: int, noise: int, hue: int, test_images: int) -> Path:
        root = tmp_path_factory.mktemp(name)
        random = np.random.RandomState(seed)
        for split, count in (("train", 60), ("test", test_images)):
            for number in range(count):
                pixels = random.randint(0, noise, (8, 8, 3)).astype(np.uint8)
                pixels[..., number % 3] += hue
                folder = root / "images" / split / f"class{number % 3}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        shard_corpus(ShardOptions(source=str(root / "images"), out=str(root / "set"), shard_samples=10, workers=0))
        return root / "set"

    return make


@pytest.fixture(scope="session")
def tiny_shards(shards_of_hues: Callable[..., Path]) -> Path:
    """Shards of 8 x 8 images, 60 to train on and 31 to test on; the class is one of 3 hues. Read only."""
    return shards_of_hues("tiny", seed=0, noise=120, hue=100, test_images=31)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write one YAML file after the other and return its name."""

    def make(text: str) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(text)
        return str(file)

    return make


@pytest.fixture(scope="session")
def bare_tiny_shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of ``tiny_shards`` in shards without labels. Read only."""
    from mpp.shards.options import ShardOptions
    from mpp.shards.sharding import shard_corpus

    out = tmp_path_factory.mktemp("bare") / "set"
    shard_corpus(ShardOptions(source=str(tiny_shards.parent / "images"), out=str(out), labels="none", workers=0))
    return out


@pytest.fixture(scope="session")
def tiny_vit() -> dict[str, Any]:
    """The ``vit`` settings that suit ``tiny_shards``."""
    return {
        "name": "vit_tiny_patch16_224",
        "image_size": [8, 8],
        "patch_size": 2,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "pool": "mean",
    }


@pytest.fixture(scope="session")
def tiny_run(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of masked patch prediction on ``tiny_shards``, 2 steps. Read only."""
    from mpp.config import resolve
    from mpp.training.pretraining import pretrain
    from mpp.training.recipe import PretrainConfig

    out = tmp_path_factory.mktemp("tiny_run") / "run"
    tree = {
        "shards": str(tiny_shards),
        "out": str(out),
        "vit": tiny_vit,
        "steps": 2,
        "global_batch": 16,
        "stream": {"workers": 0},
    }
    pretrain(resolve(PretrainConfig, tree))
    return out


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


@pytest.fixture
def faulty_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A web server over ``tmp_path / "served"``; pauses before other tries, and stalls, are short in this process."""
    from mpp.sources import remote

    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
    (tmp_path / "served").mkdir()
    with FaultyServer(tmp_path / "served") as server:
        yield server
