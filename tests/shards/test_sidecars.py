"""Other readers open a set as it is and find every sample with its label."""

import gc
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mpp.shards.layout import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.shards.sidecars import finalize

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars open
COUNTS = {"train": 20, "validation": 5}


@pytest.fixture(autouse=True)
def close_what_readers_left_open() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(params=[True, False], ids=["labelled", "unlabelled"])
def labelled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def root(corpus: Callable[..., Path], tmp_path: Path, labelled: bool) -> Path:
    train = [f"train/{'ab'[number % 2]}/{number}.jpg" for number in range(20)]
    source = corpus(*train, *(f"val/b/{number}.jpg" for number in range(5)))
    labels = "auto" if labelled else "none"
    out = tmp_path / "out"
    shard_corpus(ShardOptions(source=str(source), out=out, shard_samples=6, workers=0, labels=labels))
    return out


def tars(root: Path, split: str) -> list[str]:
    return [str(path) for path in sorted(root.glob(f"{split}/*.tar"))]


def expected(split: str) -> list[int]:
    return [0] * 10 + [1] * 10 if split == "train" else [1] * 5


def test_plain_webdataset_reads_every_sample(root: Path, labelled: bool) -> None:
    import webdataset

    for split, count in COUNTS.items():
        samples = list(webdataset.WebDataset(tars(root, split), shardshuffle=False))
        assert len({sample["__key__"] for sample in samples}) == count
        assert all(sample["jpg"].startswith(b"\xff\xd8") and json.loads(sample["json"]) for sample in samples)
        if labelled:
            assert sorted(int(sample["cls"]) for sample in samples) == expected(split)


def test_hugging_face_datasets_reads_every_sample(root: Path, labelled: bool, tmp_path: Path) -> None:
    import datasets

    loaded: Any = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == COUNTS
    row = loaded["train"][0]
    assert row["jpg"].mode == "RGB" and row["json"]["key"] == row["__key__"]
    if labelled:
        assert loaded["train"].features["cls"].names == ["a", "b"]
        assert all(sorted(loaded[split]["cls"]) == expected(split) for split in COUNTS)


@pytest.mark.parametrize("labelled", [True], ids=["labelled"], indirect=True)
def test_timm_reads_every_sample(root: Path) -> None:
    from timm.data.readers.reader_wds import ReaderWds

    for split, count in COUNTS.items():
        reader = ReaderWds(str(root), split=split)
        assert len(reader) == count
        assert sorted(label for _, label in reader) == expected(split)


def test_the_tar_index_points_at_the_first_header_of_each_sample(root: Path) -> None:
    for path in tars(root, "train"):
        with tarfile.open(path) as tar:
            begins = {member.name.split(".")[0]: member.offset for member in reversed(tar.getmembers())}
            end = tar.offset
        assert np.fromfile(f"{path}.idx", "<u8").tolist() == [*sorted(begins.values()), end]


def test_counts_agree_in_every_index(root: Path, labelled: bool) -> None:
    sizes = json.loads((root / "sizes.json").read_text())
    index = json.loads((root / "index.json").read_text())
    energon = json.loads((root / ".nv-meta/.info.json").read_text())["shard_counts"]
    parts = yaml.safe_load((root / ".nv-meta/split.yaml").read_text())["split_parts"]
    fields = yaml.safe_load((root / ".nv-meta/dataset.yaml").read_text())["field_map"]
    assert {entry["url"]: entry["nsamples"] for entry in index["shardlist"]} == energon
    assert {Path(name).name: count for name, count in energon.items()} == sizes
    assert all((root / entry["url"]).stat().st_size == entry["filesize"] for entry in index["shardlist"])
    assert sum(energon[name] for name in parts["train"]) == 20 and sum(energon[name] for name in parts["val"]) == 5
    assert fields == ({"image": "jpg", "label": "cls"} if labelled else {"image": "jpg"})
    assert index["classes"] == (["a", "b"] if labelled else None)


def test_nothing_but_indexes_stands_beside_the_tars(root: Path) -> None:
    beside = {path.name for split in COUNTS for path in (root / split).iterdir()}
    names = {Path(path).name for split in COUNTS for path in tars(root, split)}
    assert beside == names | {f"{name}.idx" for name in names}


def test_finalizing_again_changes_nothing(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    records = [json.loads(path.read_text()) for path in sorted(root.glob(".mpp/*/*.json"))]
    classes = json.loads((root / "index.json").read_text())["classes"]
    finalize(root, ["train", "validation"], classes and tuple(classes), records)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
