"""Folders and datasets are listed with the right splits, labels and bytes, or refused in one sentence."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from mpp.errors import ConfigError, DataError
from mpp.shards.corpora import list_corpus, printable

Corpus = Callable[..., Path]
Jpeg = Callable[[int], bytes]


def sources(root: Path, labels: str = "auto") -> dict[str, tuple[str, ...]]:
    return {name: split.sources for name, split in list_corpus(str(root), labels, None).splits.items()}


def test_a_flat_folder_is_one_split_without_labels(corpus: Corpus, jpeg: Jpeg) -> None:
    listing = list_corpus(str(corpus("b.jpg", "a.JPG")), "auto", None)
    assert listing.classes is None
    assert listing.splits["train"].sources == ("a.JPG", "b.jpg")
    assert listing.splits["train"].sizes.tolist() == [len(jpeg(1)), len(jpeg(0))]
    sample = listing.reader.read("train", 0)
    assert (sample.image, sample.source) == (jpeg(1), "a.JPG")


def test_class_folders_are_labels_over_all_splits(corpus: Corpus) -> None:
    root = corpus("train/dog/1.jpg", "train/cat/2.jpg", "val/cat/x/3.jpg", "test/emu/4.jpg")
    listing = list_corpus(str(root), "auto", None)
    assert listing.classes == ("cat", "dog", "emu")
    labels = {name: split.labels.tolist() for name, split in listing.splits.items() if split.labels is not None}
    assert labels == {"train": [0, 1], "validation": [0], "test": [2]}
    assert list_corpus(str(root), "none", None).classes is None


def test_folders_are_no_labels_where_one_image_lies_outside_or_there_is_one_folder(corpus: Corpus) -> None:
    mixed = corpus("a/1.jpg", "b/2.jpg", "3.jpg", folder="mixed")
    assert list_corpus(str(mixed), "auto", None).classes is None
    with pytest.raises(ConfigError, match=r"3\.jpg lies in no class folder"):
        list_corpus(str(mixed), "folders", None)
    single = corpus("a/1.jpg", "a/2.jpg", folder="single")
    assert list_corpus(str(single), "auto", None).classes is None
    assert list_corpus(str(single), "folders", None).classes == ("a",)


def test_an_image_beside_split_folders_is_an_error(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"logo\.png lies outside the split folders \(test, train\)"):
        sources(corpus("train/1.jpg", "test/2.jpg", "logo.png"))


def test_odd_names_links_and_other_files(corpus: Corpus, jpeg: Jpeg) -> None:
    root = corpus("ü/日本.jpg", "no_extension", "LICENSE", "notes.txt", ".hidden/1.jpg", ".2.jpg", "page.svg")
    (root / "LICENSE").write_text("not an image")
    os.symlink(root, root / "loop")
    os.symlink("nowhere", root / "broken.png")
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg(9))
    listed = sources(root)["train"]
    assert listed == ("broken.png", "no_extension", "page.svg", "ü/日本.jpg", "\\xff.jpg")
    reader = list_corpus(str(root), "auto", None).reader
    assert reader.read("train", 4).image == jpeg(9)
    with pytest.raises(OSError):
        reader.read("train", 0)
    assert printable("a\udcff") == "a\\xff"


@pytest.fixture
def parquet(tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"picture": datasets.Image(), "animal": names, "shade": datasets.Value("int64")})
    root = tmp_path / "parquet"
    root.mkdir()
    for split, count in (("train", 5), ("validation", 2)):
        rows = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(count)]
        columns = {"picture": rows, "animal": [n % 2 for n in range(count)], "shade": [n % 3 for n in range(count)]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


def test_parquet_files_give_original_bytes_and_labels_by_feature_type(parquet: Path, jpeg: Jpeg) -> None:
    listing = list_corpus(str(parquet), "auto", None)
    assert listing.classes == ("cat", "dog")
    assert {name: len(split.sources) for name, split in listing.splits.items()} == {"train": 5, "validation": 2}
    assert listing.splits["train"].sizes.tolist() == [len(jpeg(number)) for number in range(5)]
    assert listing.splits["train"].labels is not None and listing.splits["train"].labels.tolist() == [0, 1, 0, 1, 0]
    sample = listing.reader.read("train", 3)
    assert (sample.image, sample.source) == (jpeg(3), "train[3] 3.jpg")


@pytest.mark.parametrize(
    "pattern", ["cifar10-{}.parquet", "{}.parquet", "data/{}/0000.parquet", "animals_{}/0000.parquet"]
)
def test_the_split_of_a_parquet_file_is_a_word_of_its_name_or_folder(parquet: Path, pattern: str) -> None:
    for split in ("train", "validation"):
        target = parquet / pattern.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        (parquet / f"{split}-00000-of-00001.parquet").rename(target)
    assert {name: len(found) for name, found in sources(parquet).items()} == {"train": 5, "validation": 2}


def test_a_word_inside_another_is_no_split_and_two_splits_in_one_name_are_an_error(parquet: Path) -> None:
    (parquet / "validation-00000-of-00001.parquet").rename(parquet / "latest-contest.parquet")
    assert {name: len(found) for name, found in sources(parquet).items()} == {"train": 7}
    (parquet / "latest-contest.parquet").rename(parquet / "train_and_test.parquet")
    with pytest.raises(DataError, match=r"train_and_test\.parquet names the splits test and train"):
        sources(parquet)


def test_parquet_files_beside_images_are_refused_naming_one_of_each(parquet: Path, jpeg: Jpeg) -> None:
    (parquet / "assets").mkdir()
    (parquet / "assets/logo.jpg").write_bytes(jpeg(0))
    with pytest.raises(
        ConfigError, match=r"images \(assets/logo\.jpg\) and parquet files \(train-0.*\.parquet\)"
    ) as caught:
        sources(parquet)
    assert "subfolder" in str(caught.value)


def write_split(root: Path, split: str, jpeg: Jpeg, labels: list[int | None]) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = [{"bytes": jpeg(number), "path": None} for number in range(len(labels))]
    root.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features)
    table.to_parquet(str(root / f"{split}.parquet"))


@pytest.mark.parametrize("none", [-1, None])
def test_a_split_without_any_label_is_left_out_and_one_with_some_is_an_error(
    tmp_path: Path, jpeg: Jpeg, none: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "hub"
    write_split(root, "test", jpeg, [none] * 3)
    with pytest.raises(DataError, match="no split has labels in 'label'"):
        sources(root)
    write_split(root, "train", jpeg, [0, 1])
    listing = list_corpus(str(root), "auto", None)
    assert list(listing.splits) == ["train"] and listing.classes == ("cat", "dog")
    assert listing.splits["train"].labels is not None and listing.splits["train"].labels.tolist() == [0, 1]
    assert "test left out: none of its 3 images has a label in 'label'" in listing.decisions
    assert {name: len(found) for name, found in sources(root, "none").items()} == {"test": 3, "train": 2}
    write_split(root, "validation", jpeg, [1, none])
    with pytest.raises(DataError, match="validation: 1 of 2 images have no label in 'label'"):
        sources(root)


def test_what_is_sent_to_a_worker_is_small_and_reads_the_same(parquet: Path, corpus: Corpus) -> None:
    folder = corpus(*(f"{'ab'[number % 2]}/{number}.jpg" for number in range(100)))
    for source, item in ((parquet, 3), (folder, 57)):
        reader = list_corpus(str(source), "auto", None).reader
        expected = reader.read("train", item)
        sent = pickle.dumps(reader.narrow("train", [item]))
        assert len(sent) < 4000
        assert pickle.loads(sent).read("train", item) == expected


def test_columns_of_a_dataset_can_be_named(parquet: Path) -> None:
    listing = list_corpus(str(parquet), "shade", "picture")
    assert listing.classes == ("0", "1", "2")
    assert listing.splits["train"].labels is not None and listing.splits["train"].labels.tolist() == [0, 1, 2, 0, 1]
    assert list_corpus(str(parquet), "none", None).classes is None
    with pytest.raises(ConfigError, match="image=pic: no such column; there are picture, animal, shade"):
        list_corpus(str(parquet), "auto", "pic")
    with pytest.raises(ConfigError, match="labels=folders: no such column"):
        list_corpus(str(parquet), "folders", None)


def test_sources_that_cannot_be_used_are_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        sources(tmp_path / "missing")
    file = tmp_path / "list.txt"
    file.write_text("a.jpg\n")
    with pytest.raises(ConfigError, match="is a file"):
        sources(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        sources(tmp_path / "empty")
    with pytest.raises(ConfigError, match="labels=species: a folder of images has no columns"):
        sources(corpus("a/1.jpg"), "species")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="its parquet files cannot be read"):
        sources(bad)
