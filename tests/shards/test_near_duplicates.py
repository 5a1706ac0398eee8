"""The report names what the splits share and the groups, stores them all, and leaves the set as it is."""

import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp.errors import DataError
from mpp.shards.likeness import Hashes
from mpp.shards.near_duplicates import TABLE, Samples, hash_shard, rank_groups, report_near_duplicates
from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.shards.shardset import ShardSet
from mpp.shards.verification import verify

Hashed = tuple[str, Hashes]


def here(function: Callable[[ShardSet], Hashed], shards: Sequence[ShardSet]) -> Iterator[Hashed]:
    return map(function, shards)


def backwards(function: Callable[[ShardSet], Hashed], shards: Sequence[ShardSet]) -> Iterator[Hashed]:
    return map(function, reversed(shards))


def _scene(seed: int, side: int = 128) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC).resize((side, side))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set of 13 images: scenes of one number look alike, two images are blank."""
    images = {
        "train/1.png": _scene(1), "test/1-small.png": _scene(1, 90),
        "train/2.png": _scene(2), "train/2-b.png": _scene(2, 96),
        "train/3.png": _scene(3), "train/3-b.png": _scene(3, 99), "train/3-c.png": _scene(3, 110),
        "train/4.png": _scene(4), "test/4-b.png": _scene(4, 80), "validation/4-c.png": _scene(4, 100),
        "train/[red]5.png": _scene(5), "train/white.png": Image.new("RGB", (40, 40), "white"),
        "test/gray.png": Image.new("RGB", (50, 40), "gray"),
    }  # fmt: skip
    for name, image in images.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "source" / name)
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    shard_corpus(ShardOptions(source=source, out=out, labels="none", shard_samples=3, workers=0))
    return tmp_path / "out"


def _table(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(root / TABLE).to_pylist()
    return rows


def _files(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path != root / TABLE]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_table_holds_every_group_those_across_splits_first(root: Path) -> None:
    report_near_duplicates(root, 4, here)
    groups: dict[int | None, set[str]] = {}
    for row in _table(root):
        groups.setdefault(row["group"], set()).add(row["source"])
    assert list(groups.items()) == [
        (0, {"test/4-b.png", "validation/4-c.png", "train/4.png"}),
        (1, {"test/1-small.png", "train/1.png"}),
        (2, {"train/3.png", "train/3-b.png", "train/3-c.png"}),
        (3, {"train/2.png", "train/2-b.png"}),
        (None, {"test/gray.png", "train/white.png"}),
    ]
    for row in _table(root):
        assert row["source"].startswith(f"{row['split']}/")
        assert (row["distance"] is None) == (row["group"] is None)
    firsts = [next(rows) for _, rows in itertools.groupby(_table(root), key=lambda row: row["group"])]
    assert [row["split"] for row in firsts] == ["test", "test", "train", "train", "test"]
    assert [row["distance"] for row in firsts] == [0, 0, 0, 0, None]


def test_the_report_says_first_what_the_splits_share(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    report_near_duplicates(root, 4, here)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        f"{root}: 13 images, near duplicates within 4 of 64 bits",
        "  1 of 3 test images have a near duplicate in validation (1 of 1 the other way)",
        "  2 of 3 test images have a near duplicate in train (2 of 9 the other way)",
        "  1 of 1 validation images have a near duplicate in train (1 of 9 the other way)",
        "  10 images in 4 groups, 2 of them across splits",
        "  2 images are flat (blank, or a plain gradient) and not compared",
    ]
    assert lines[6] == "  group 0: 3 images, 1 in test, 1 in validation, 1 in train"
    assert lines[-1] == f"all of them: {root / TABLE}"
    shown = [line.split()[-1] for line in lines if " bits  " in line]
    assert shown == [row["source"] for row in _table(root) if row["group"] is not None]


def test_the_set_stays_as_it_is_and_the_report_does_not_depend_on_who_was_first(root: Path) -> None:
    before = _files(root)
    report_near_duplicates(root, 4, here)
    table = (root / TABLE).read_bytes()
    report_near_duplicates(root, 4, backwards)
    assert (root / TABLE).read_bytes() == table
    assert _files(root) == before
    assert verify(root, full=True).problems == ()


def test_samples_are_known_by_the_key_and_the_source_in_the_tar(root: Path) -> None:
    samples = Samples(root)
    assert [split.split for split in samples.splits] == ["test", "validation", "train"]
    found = samples.look_up(np.arange(13)[::-1])
    keys = []
    for split in ("test", "validation", "train"):
        for tar in sorted((root / split).glob("*.tar")):
            with tarfile.open(tar) as opened:
                keys += [(split, name.removesuffix(".json")) for name in opened.getnames() if name.endswith(".json")]
    assert [(sample.split, sample.key) for sample in reversed(found)] == keys
    assert sorted(sample.source for sample in found if sample.source.startswith("train/[")) == ["train/[red]5.png"]


def test_one_damaged_byte_is_named(root: Path) -> None:
    shard = Samples(root).shards[-1]
    tar = root / shard.shards[0].name
    raw = bytearray(tar.read_bytes())
    raw[600] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{tar.name}:0: the png member is damaged[^!]*fix: mpp verify .* full=true"):
        hash_shard(shard)


def test_a_long_group_is_cut_in_print_and_whole_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    for number in range(12):
        _scene(1, 100 + number).save(tmp_path / f"source/{number}.png")
    shard_corpus(ShardOptions(source=str(tmp_path / "source"), out=str(tmp_path / "out"), workers=0))
    capsys.readouterr()
    report_near_duplicates(tmp_path / "out", 4, here)
    text = capsys.readouterr().out
    assert "group 0: 12 images, 12 in train" in text and text.count(" bits  ") == 8 and "and 4 more" in text
    assert len(_table(tmp_path / "out")) == 12


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=24))
def test_groups_come_across_splits_first_then_by_size_then_by_their_first_image(drawn: list[tuple[int, int]]) -> None:
    names = [name for name, _ in drawn]
    splits = np.array([split for _, split in drawn], np.int64)
    found = rank_groups(np.array([names.index(name) for name in names], np.int64), splits)
    members = {name: [number for number, other in enumerate(names) if other == name] for name in names}
    groups = [numbers for numbers in members.values() if len(numbers) > 1]
    groups.sort(key=lambda numbers: (len(set(splits[numbers].tolist())) == 1, -len(numbers), numbers[0]))
    assert found.numbers.tolist() == [number for numbers in groups for number in numbers]
    assert found.groups.tolist() == [rank for rank, numbers in enumerate(groups) for _ in numbers]
    assert found.total == len(groups)
    assert found.across == sum(len(set(splits[numbers].tolist())) > 1 for numbers in groups)
