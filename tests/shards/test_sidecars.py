"""Other readers open a set as it is and find every sample with its label."""

import gc
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mpp.shards.options import FinalizeOptions, ShardOptions
from mpp.shards.sharding import finalize_shards, shard_corpus

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
    shard_corpus(ShardOptions(source=str(source), out=str(out), shard_samples=6, workers=0, labels=labels))
    return out


def tars(root: Path, split: str) -> list[str]:
    return [str(path) for path in sorted(root.glob(f"{split}/*.tar"))]


def pixels(image: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(image)))


def read_plainly(root: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Return the members of every sample of a split by key and extension, in the order of the tars."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in tars(root, split):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[extension] = file.read()
    assert len(samples) == COUNTS[split]
    return samples


def energon_facts(root: Path) -> dict[str, Any]:
    """Return the indexes of the tars by name, and the number of samples in each shard."""
    counts = json.loads((root / ".nv-meta/.info.json").read_text())["shard_counts"]
    return {path.name: path.read_bytes() for path in root.rglob("*.tar.idx")} | counts


def test_every_sample_has_its_members_its_label_and_a_key_of_its_own(root: Path, labelled: bool) -> None:
    samples = {split: read_plainly(root, split) for split in COUNTS}
    members = ["cls", "jpg", "json"] if labelled else ["jpg", "json"]
    assert all(list(sample) == members for split in samples.values() for sample in split.values())
    assert not samples["train"].keys() & samples["validation"].keys()
    if labelled:
        classes = {split: sorted(int(sample["cls"]) for sample in samples[split].values()) for split in samples}
        assert classes == {"train": [0] * 10 + [1] * 10, "validation": [1] * 5}


def test_plain_webdataset_reads_every_sample(root: Path) -> None:
    import webdataset

    for split in COUNTS:
        found = list(webdataset.WebDataset(tars(root, split), shardshuffle=False))
        members = {s["__key__"]: {name: s[name] for name in s if not name.startswith("__")} for s in found}
        assert len(found) == len(members)
        assert members == read_plainly(root, split)


def test_hugging_face_datasets_reads_every_sample(root: Path, labelled: bool, tmp_path: Path) -> None:
    import datasets

    loaded: Any = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == COUNTS
    assert loaded["train"][0]["jpg"].mode == "RGB"
    for split in COUNTS:
        rows = {row["__key__"]: row for row in loaded[split].cast_column("jpg", datasets.Image(decode=False))}
        for key, sample in read_plainly(root, split).items():
            assert rows[key]["jpg"]["bytes"] == sample["jpg"] and rows[key]["json"] == json.loads(sample["json"])
            assert not labelled or rows[key]["cls"] == int(sample["cls"])
    if labelled:
        assert loaded["train"].features["cls"].names == ["a", "b"]


@pytest.mark.parametrize("labelled", [True], ids=["labelled"], indirect=True)
def test_timm_reads_every_sample(root: Path) -> None:
    from timm.data.readers.reader_wds import ReaderWds

    for split, count in COUNTS.items():
        reader = ReaderWds(str(root), split=split)
        assert len(reader) == count
        for (image, label), sample in zip(reader, read_plainly(root, split).values(), strict=True):
            assert label == int(sample["cls"]) and (np.asarray(image) == pixels(sample["jpg"])).all()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_energon_reads_every_sample(root: Path, labelled: bool) -> None:
    energon = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for split, part in (("train", "train"), ("validation", "val")):
        dataset = energon.get_val_dataset(str(root), split_part=part, batch_size=None, worker_config=workers)
        found = {sample.__key__.rpartition("/")[2]: sample for sample in energon.get_loader(dataset)}
        samples = read_plainly(root, split)
        assert found.keys() == samples.keys()
        for key, sample in samples.items():
            image = (found[key].image.numpy() * 255).round().astype(np.uint8)
            assert (image.transpose(1, 2, 0) == pixels(sample["jpg"])).all()
            assert not labelled or found[key].label == int(sample["cls"])


def test_energon_prepares_the_set_to_the_same_indexes_and_counts(root: Path, tmp_path: Path) -> None:
    prepare = pytest.importorskip("megatron.energon.tools.prepare", reason="megatron-energon is not installed")
    bare = tmp_path / "bare"
    for path in (path for split in COUNTS for path in tars(root, split)):
        copy = bare / Path(path).relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(path).read_bytes())
    settings = ["--non-interactive", "--split-ratio=8,1,1", "--skip-dataset-yaml", "--num-workers=1", "--no-progress"]
    prepare.command([*settings, str(bare)], standalone_mode=False)
    ours, theirs = (energon_facts(top) for top in (root, bare))
    assert ours == theirs and len(ours) == 2 * (4 + 1)


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
    finalize_shards(FinalizeOptions(out=str(root)))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
