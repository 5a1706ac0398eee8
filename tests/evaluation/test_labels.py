"""Labels are chosen and held out by a seed: exact counts, every class, nothing twice."""

from pathlib import Path

import numpy as np
import pytest

from mpp.errors import DataError
from mpp.evaluation.labels import check_classes, choose_labels, labelled_shards, split_held_out
from mpp.stream.reader import ShardReader

LABELS = np.arange(60, dtype=np.int64) % 3


def test_the_same_number_of_every_class_is_chosen_each_image_once() -> None:
    chosen = choose_labels(LABELS, 3, 7, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == [7, 7, 7]
    assert np.all(np.diff(chosen) > 0)


def test_a_seed_decides_the_choice_and_fewer_labels_are_a_part_of_more() -> None:
    chosen = choose_labels(LABELS, 3, 7, seed=0)
    assert np.array_equal(chosen, choose_labels(LABELS, 3, 7, seed=0))
    assert not np.array_equal(chosen, choose_labels(LABELS, 3, 7, seed=1))
    assert set(choose_labels(LABELS, 3, 4, seed=0)) < set(chosen)


def test_null_chooses_every_image() -> None:
    assert choose_labels(LABELS, 3, None, seed=0).tolist() == list(range(60))


@pytest.mark.parametrize(
    ("num_classes", "per_class", "fix"), [(3, 21, "labels_per_class=20"), (4, 1, "labels_per_class=null")]
)
def test_a_class_with_too_few_images_is_named_with_what_would_do(num_classes: int, per_class: int, fix: str) -> None:
    with pytest.raises(DataError, match=fix):
        choose_labels(LABELS, num_classes, per_class, seed=0)


@pytest.mark.parametrize(("share", "each"), [(0.2, 3), (0.01, 1), (0.9, 14)])
def test_a_share_of_every_class_is_held_out_and_the_rest_fitted(share: float, each: int) -> None:
    ids = choose_labels(LABELS, 3, 15, seed=0)
    fitted, held = split_held_out(ids, LABELS, share, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [each] * 3
    assert np.array_equal(np.sort(np.concatenate([fitted, held])), ids)


def test_one_image_of_a_class_cannot_be_held_out_and_fitted() -> None:
    with pytest.raises(DataError, match="none is left"):
        split_held_out(choose_labels(LABELS, 3, 1, seed=0), LABELS, 0.1, seed=0)


CLASSES = ("cat", "dog", "eel", "fly")


def test_classes_of_both_splits_need_no_note() -> None:
    assert check_classes(np.array([0, 1, 2, 3]), np.array([3, 2, 1, 0, 0]), CLASSES) == ()


def test_classes_without_images_are_named() -> None:
    train, test = np.array([0, 1, 0, 1]), np.array([0, 0])
    assert check_classes(train, test, CLASSES) == (
        "class 'dog' is not in the test split: means over classes leave it out",
        "2 classes ('eel', 'fly') are in neither split",
    )


def test_a_class_that_was_not_drawn_to_train_on_is_tested_all_the_same() -> None:
    assert check_classes(np.array([0, 1]), np.array([0, 1, 2, 3]), CLASSES, drawn=True) == (
        "2 classes ('eel', 'fly') are not among the train images that were drawn, and tested as the rest",
    )


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1], [0, 1, 3], "class 'fly' is in the test split but without an image in the train split"),
        ([0], [0, 1, 2, 3], r"3 classes \('dog', 'eel', 'fly'\) are in the test split but without"),
        ([0, 1, 4], [0], "the train split has an image of label 4, but there are 4 classes"),
        ([0, 1], [-1, -1], "the test split has an image of label -1"),
        ([], [0], "the train split has no image"),
        ([0], [], "the test split has no image"),
    ],
)
def test_labels_that_make_no_sense_are_refused(train: list[int], test: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        check_classes(np.array(train, np.int64), np.array(test, np.int64), CLASSES)
    assert "fix: " in str(refused.value)


def test_labelled_shards_open_and_others_say_what_is_missing(tiny_shards: Path, bare_tiny_shards: Path) -> None:
    shards = labelled_shards(str(tiny_shards), "train")
    assert np.bincount(ShardReader(shards).labels()).tolist() == [20, 20, 20]
    with pytest.raises(DataError, match="no labels"):
        labelled_shards(str(bare_tiny_shards), "train")
    with pytest.raises(DataError, match="no split 'val', it has"):
        labelled_shards(str(tiny_shards), "val")
