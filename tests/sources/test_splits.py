"""The names of files and folders say the split, the same way for every kind of source."""

import pytest

from mpp.errors import DataError
from mpp.sources.splits import Place, SplitFolders, place_of, split_depth, split_name, word_split


def test_a_word_of_the_nearest_name_is_the_split() -> None:
    paths = ("cifar10-train.parquet", "test/train-0.tar", "val/0.tar", "latest-contest.tar", "ILSVRC2012_img_val.tar")
    assert [word_split(path) for path in paths] == ["train", "train", "validation", None, "validation"]
    with pytest.raises(DataError, match=r"train_and_test\.tar names the splits test and train"):
        word_split("train_and_test.tar")


@pytest.mark.parametrize(
    ("folders", "depth"),
    [
        (["Train/cat", "anything"], 0),
        (["train2017", "val2017"], 0),
        (["train_images/cat", "test_images/cat"], 0),
        (["ILSVRC2012_img_val"], 0),
        (["imagenette2/train/cat", "imagenette2/val/cat"], 1),
        (["coco/train2017", "coco/val2017"], 1),
        (["cats/train", "dogs/train"], None),
        (["coco/train2017", "coco"], None),
        (["bullet_train", "tench"], None),
        (["tench", "train"], None),
        (["cat/x", "dog/y"], None),
        (["train_and_test"], None),
        (["", "train"], None),
        ([], None),
    ],
)
def test_split_folders_stand_at_the_top_or_below_the_one_folder_there(folders: list[str], depth: int | None) -> None:
    assert split_depth(folders) == depth


def test_a_folder_named_as_a_split_alone_decides_without_a_look_at_the_rest() -> None:
    assert split_depth(iter(["train/cat"])) == 0
    rest = iter(["cat", "dog", "emu", "fox"])
    assert split_depth(rest) is None
    assert list(rest) == ["dog", "emu", "fox"], "one folder that is no split decides, too"


@pytest.mark.parametrize(
    ("folder", "depth", "place"),
    [
        ("Train/cat/x", 0, Place("train", "cat", None)),
        ("valid", 0, Place("validation", None, None)),
        ("val2017/cat", 0, Place("validation", "cat", None)),
        ("data/val/cat/x", 1, Place("validation", "cat", None)),
        ("cat", None, Place(None, "cat", None)),
        ("bullet_train", None, Place(None, "bullet_train", "train")),
        ("trained/x", None, Place(None, "trained", None)),
        ("cat/test", None, Place(None, "cat", "test")),
        ("test/cat", None, Place("test", "cat", None)),
        ("", None, Place(None, None, None)),
    ],
)
def test_a_folder_says_split_and_class(folder: str, depth: int | None, place: Place) -> None:
    assert place_of(folder, depth) == place


def noted(*folders: str) -> SplitFolders:
    splits = SplitFolders()
    for folder in folders:
        splits.note(place_of(folder, None), f"{folder}/1.jpg")
    return splits


def test_images_lie_all_in_split_folders_or_none_does() -> None:
    noted("train", "test").check("here")
    with pytest.raises(DataError, match=r"here: cat/1\.jpg lies outside the split folders \(test, train\)"):
        noted("train", "test", "cat").check("here")


@pytest.mark.parametrize("folders", [("cat/train", "cat/test"), ("cat/test", "dog/test"), ("a_train", "b_val", "cat")])
def test_split_folders_that_count_nowhere_are_named(folders: tuple[str, ...]) -> None:
    with pytest.raises(
        DataError, match=r"here: .*1\.jpg: folders named after splits count at the top, where every image lies in one"
    ):
        noted(*folders).check("here")


@pytest.mark.parametrize("folders", [("cat/train", "dog/train"), ("cat/test", "dog"), ("bullet_train", "tench")])
def test_class_folders_may_have_the_name_of_one_split(folders: tuple[str, ...]) -> None:
    noted(*folders).check("here")


def test_a_split_is_named_by_letters_and_digits() -> None:
    assert [split_name(name, "here") for name in ("val", "Test", "fold-1")] == ["validation", "test", "fold-1"]
    for name in ("../x", "", None, "a b"):
        with pytest.raises(DataError, match=r"here: split .* is no name"):
            split_name(name, "here")


def test_an_image_beside_split_folders_with_longer_names_is_named() -> None:
    with pytest.raises(DataError, match=r"train2017/1\.jpg, val2017/1\.jpg: .*, and unlabeled/1\.jpg lies in none"):
        noted("train2017", "unlabeled", "val2017").check("here")
