"""Splits and labels are read off paths and mapping files, or what does not fit is named."""

from pathlib import Path

import pytest

from mpp.errors import ConfigError, DataError
from mpp.sources.labels import (
    SplitFolders,
    class_folder,
    find_labels,
    labeller,
    read_mapping,
    top_split,
    word_split,
)


def test_a_top_folder_names_the_split_and_the_next_the_class() -> None:
    paths = ("Train/cat/x/1.jpg", "valid/2.jpg", "cat/3.jpg", "train", "trained/x/4.jpg")
    assert [top_split(path) for path in paths] == ["train", "validation", None, None, None]
    assert [class_folder(path) for path in paths] == ["cat", None, "cat", None, "trained"]


def test_a_word_of_the_nearest_name_is_the_split() -> None:
    paths = ("cifar10-train.parquet", "test/train-0.tar", "val/0.tar", "latest-contest.tar", "ILSVRC2012_img_val.tar")
    assert [word_split(path) for path in paths] == ["train", "train", "validation", None, "validation"]
    with pytest.raises(DataError, match=r"train_and_test\.tar names the splits test and train"):
        word_split("train_and_test.tar")


def test_images_lie_all_in_split_folders_or_none_does() -> None:
    splits = SplitFolders()
    assert [splits.add(top_split(path), path) for path in ("train/1.jpg", "test/2.jpg")] == ["train", "test"]
    splits.check("here")
    assert splits.add(None, "3.jpg") == "train"
    with pytest.raises(DataError, match=r"here: 3\.jpg lies outside the split folders \(test, train\)"):
        splits.check("here")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "a/1.jpg,cat\n2.jpg,dog\n"),
        ("m.csv", "id,label,path\n7,cat,a/1.jpg\n8,dog,2.jpg\n"),
        ("m.tsv", "path\tclass\na/1.jpg\tcat\n2.jpg\tdog\n"),
        ("m.jsonl", '{"path": "a/1.jpg", "label": "cat"}\n{"path": "2.jpg", "label": "dog"}\n'),
        ("m.json", '{"a/1.jpg": "cat", "2.jpg": "dog"}'),
        ("m.yaml", "a/1.jpg: cat\n2.jpg: dog\n"),
    ],
)
def test_a_mapping_names_images_by_path_or_by_file_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    label_of = labeller(str(tmp_path / name))
    assert [label_of(path, "folder") for path in ("a/1.jpg", "deep/er/2.jpg")] == ["cat", "dog"]
    with pytest.raises(DataError, match=r"no label for b/1\.jpg"):
        label_of("b/1.jpg", "folder")


def test_a_mapping_to_digits_alone_gives_numbers(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("1.jpg,10\n2.jpg,9\n")
    assert read_mapping(tmp_path / "m.csv") == {"1.jpg": 10, "2.jpg": 9}
    (tmp_path / "m.json").write_text('{"1.jpg": 3, "2.jpg": "unknown"}')
    assert read_mapping(tmp_path / "m.json") == {"1.jpg": "3", "2.jpg": "unknown"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "1.jpg,cat\n1.jpg,dog\n", r"m\.csv:2: 1\.jpg has two labels, cat and dog"),
        ("m.json", '{"1.jpg": "cat", "1.jpg": "dog"}', r"1\.jpg has two labels, cat and dog"),
        ("m.yaml", "1.jpg: cat\n1.jpg: dog\n", r"m\.yaml:2: 1\.jpg has two labels"),
        ("m.csv", "path,label\n1.jpg,\n", r"m\.csv:2: '1\.jpg' has no label"),
        ("m.json", '{"1.jpg": [1]}', r"'1\.jpg' has no label"),
        ("m.json", '{"1.jpg": true}', r"'1\.jpg' has no label"),
        ("m.yaml", "1.jpg: {a: b}\n", r"'1\.jpg' has no label"),
        ("m.json", "[1, 2]", "expected an object of labels by path"),
        ("m.json", "{", "no JSON"),
        ("m.yaml", "- a\n", "expected a mapping of labels by path"),
        ("m.yaml", "a: [\n", "no YAML"),
        ("m.yaml", "a: !!python/object/apply:os.system [ls]\n", "'a' has no label"),
        ("m.csv", "id,name,kind\n1,2,3\n", "expected the columns path and label, found id, name, kind"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_mapping(tmp_path / name)


def test_labels_are_a_known_word_or_a_mapping_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.csv").touch()
    assert find_labels("none", ("auto", "none"), "a folder") == "none"
    assert find_labels("m.csv", ("auto", "none"), "a folder") == str(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="labels=species: a folder has no columns"):
        find_labels("species", ("auto", "none"), "a folder")
    with pytest.raises(ConfigError, match=r"labels=other\.csv: no such file"):
        find_labels("other.csv", ("auto", "none"), "a folder")
