"""Folders are listed with the right splits, labels and bytes, or refused in one sentence."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.config import dump, resolve
from mpp.errors import ConfigError, DataError
from mpp.sources.entries import UNKNOWN, Entry
from mpp.sources.folders import Folder

Corpus = Callable[..., Path]
Jpeg = Callable[[int], bytes]


def entries(root: Path, labels: str = "auto") -> list[Entry]:
    return list(Folder(root=root, labels=labels).entries())


def test_a_flat_folder_is_one_split_without_labels(corpus: Corpus, jpeg: Jpeg) -> None:
    root = corpus("b.jpg", "a.JPG")
    assert entries(root) == [
        Entry("train", b"a.JPG", "a.JPG", len(jpeg(1)), None),
        Entry("train", b"b.jpg", "b.jpg", len(jpeg(0)), None),
    ]
    stored = resolve(Folder, dump(Folder(root=root)))
    assert stored.read("train", b"a.JPG") == jpeg(1)


def test_class_folders_are_labels_over_all_splits(corpus: Corpus) -> None:
    root = corpus("train/dog/1.jpg", "train/cat/2.jpg", "val/cat/x/3.jpg", "test/emu/4.jpg")
    found = [("test", "emu"), ("train", "cat"), ("train", "dog"), ("validation", "cat")]
    assert [(entry.split, entry.label) for entry in entries(root)] == found
    assert {entry.label for entry in entries(root, "none")} == {None}


def test_an_image_in_no_class_folder_has_no_label_and_is_an_error_where_folders_are_asked_for(corpus: Corpus) -> None:
    root = corpus("a/1.jpg", "b/2.jpg", "3.jpg")
    assert [entry.label for entry in entries(root)] == [None, "a", "b"]
    with pytest.raises(ConfigError, match=r"3\.jpg lies in no class folder"):
        entries(root, "folders")


def test_an_image_beside_split_folders_is_an_error(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"logo\.png lies outside the split folders \(test, train\)"):
        entries(corpus("train/1.jpg", "test/2.jpg", "logo.png"))


def test_labels_can_come_from_a_mapping_file(corpus: Corpus, tmp_path: Path) -> None:
    root = corpus("train/1.jpg", "train/deep/2.jpg")
    (tmp_path / "labels.csv").write_text("train/1.jpg,7\n2.jpg,3\n")
    assert [entry.label for entry in entries(root, str(tmp_path / "labels.csv"))] == [7, 3]


def test_odd_names_links_and_other_files(corpus: Corpus, jpeg: Jpeg) -> None:
    longest = "x" * 251 + ".jpg"
    root = corpus("ü/日本.jpg", "no_extension", "LICENSE", "notes.txt", ".hidden/1.jpg", ".2.jpg", "page.svg", longest)
    (root / "LICENSE").write_text("not an image")
    os.symlink(root, root / "loop")
    os.symlink("nowhere", root / "broken.png")
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg(9))
    found = {entry.source: entry for entry in entries(root)}
    assert list(found) == ["broken.png", "no_extension", "page.svg", longest, "ü/日本.jpg", "\\xff.jpg"]
    assert Folder(root=root).read("train", found["\\xff.jpg"].place) == jpeg(9)
    assert found["broken.png"].size == UNKNOWN
    with pytest.raises(OSError):
        Folder(root=root).read("train", found["broken.png"].place)


def test_a_file_that_vanishes_after_the_listing_cannot_be_read(corpus: Corpus) -> None:
    root = corpus("1.jpg", "2.jpg")
    listed = entries(root)
    (root / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        Folder(root=root).read("train", listed[0].place)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images under this folder"):
        entries(tmp_path)


def test_what_is_passed_over_is_counted(corpus: Corpus) -> None:
    root = corpus("train2017/1.jpg", "val2017/2.jpg", "val2017/3.photo", "notes.txt", ".hidden")
    folder = Folder(root=root)
    for _ in range(2):
        assert [entry.split for entry in folder.entries()] == ["train", "validation"]
        assert folder.describe() == f"folder {root}; passed over: 2 files (.photo 1, .txt 1)"
    with pytest.raises(DataError, match=r"no images under this folder; passed over: 1 file \(\.photo 1\)"):
        entries(corpus("4.photo", folder="other"))
