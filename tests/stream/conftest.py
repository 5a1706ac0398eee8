"""Small shard sets of real tars: 37 JPEGs of several sizes in 4 shards, with labels and without; uneven ones too."""

import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp.shards.indexing import index_tars, plan_index
from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.shards.shardset import ShardSet, open_shards, place, read_members

NUM_SAMPLES = 37
UNEVEN = (19, 1, 12, 7, 30, 3, 16)


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


def write_tars(folder: Path, sizes: Sequence[int], first: int = 0, instead: Mapping[int, bytes] | None = None) -> Path:
    """Write a tar for each of ``sizes``, of JPEGs with classes; ``first`` is the number of the first picture.

    ``instead`` gives samples, by their number in all tars, another payload.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                image = (instead or {}).get(number) or image_bytes(first + number, (16, 16 + number % 7))
                for kind, data in (("jpg", image), ("cls", b"%d" % (number % 3))):
                    info = tarfile.TarInfo(f"{number:04d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                number += 1
    return folder


def index_set(source: Path | str, out: Path) -> ShardSet:
    """Index tars into ``out`` and open them."""
    index_tars(plan_index(str(source)), out, workers=0)
    return open_shards(out, "train")


def flip_bit(shards: ShardSet, shard: int, row: int, kind: str = "jpg") -> None:
    """Turn one bit over in the middle of a member of a shard."""
    offset, size, _ = read_members(shards, shard)[row, shards.shards[shard].members.index(kind)].item()
    tar = Path(place(shards.root, shards.shards[shard].name))
    tar.chmod(0o644)
    with open(tar, "r+b") as file:
        byte = os.pread(file.fileno(), 1, offset + size // 2)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset + size // 2)


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A labelled set of 7 tars of others, of 1 to 30 samples, 88 in all; read only."""
    folder = tmp_path_factory.mktemp("uneven")
    return index_set(write_tars(folder / "tars", UNEVEN), folder / "index")


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


@pytest.fixture
def make_tars() -> Callable[..., Path]:
    """``write_tars``: (folder, sizes, first=0, instead={number: payload}) to the folder."""
    return write_tars


@pytest.fixture
def index() -> Callable[..., ShardSet]:
    """``index_set``: (tars, out) to the set."""
    return index_set


@pytest.fixture
def flip() -> Callable[..., None]:
    """``flip_bit``: (set, shard, row, kind)."""
    return flip_bit
