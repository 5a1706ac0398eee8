"""What is wrong with labelled data is one message: what, where, how to mend it. Nothing is written then."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.evaluation.protocols import LabelledData, open_labelled
from mpp.transfer import main

NAMES = ["red", "green", "blue"]
CLASSES = datasets.ClassLabel(names=NAMES)
NUMBERS, WORDS, REALS = (datasets.Value(kind) for kind in ("int64", "string", "float32"))
HUES = [number % 3 for number in range(12)]
SPLITS = {"train": HUES, "test": HUES[:6]}

Words = Callable[..., list[str]]
Build = Callable[..., Path]

Case = tuple[dict[str, list[Any]], Any, list[str], int, list[str]]
CASES: dict[str, Case] = {
    "a class that is absent from train": (
        {"train": [0, 2] * 6, "test": HUES},
        CLASSES,
        [],
        3,
        ["1 of 3 classes have no image in data.train=train: green", "complete the data"],
    ),
    "a class that is absent from test": (
        {"train": HUES, "test": [0, 1]},
        CLASSES,
        [],
        3,
        ["1 of 3 classes have no image in data.test=test: blue", "another data.test"],
    ),
    "a class that is in no row, but in the type": (
        SPLITS,
        datasets.ClassLabel(names=[*NAMES, "grey"]),
        ["data.classes=4"],
        3,
        ["1 of 4 classes have no image in data.train=train: grey"],
    ),
    "a name that only test has": (
        {"train": ["a", "b"] * 6, "test": ["a", "b", "c"]},
        WORDS,
        ["data.classes=2"],
        3,
        ["test[2] has the label 'c' in 'label', 1 are so", "there are 2 classes, a to b"],
    ),
    "hidden labels of a test split": (
        {"train": HUES, "test": [-1] * 6},
        CLASSES,
        [],
        3,
        ["test: none of its 6 images has a label in 'label' (missing or negative)", "data.test=SPLIT"],
    ),
    "null labels": (
        {"train": HUES, "test": [0, None, 2, 1]},
        NUMBERS,
        [],
        3,
        ["test: 1 of 4 images have no label in 'label'"],
    ),
    "more classes in the data than in the config": (
        SPLITS,
        CLASSES,
        ["data.classes=2"],
        3,
        ["3 classes by the type of its column 'label', data.classes is 2", "data.classes=3"],
    ),
    "fewer classes in the data than in the config": (
        {"train": ["a", "b"] * 6, "test": ["a", "b"]},
        WORDS,
        [],
        3,
        ["2 classes by the labels of train, data.classes is 3", "data.classes=2"],
    ),
    "a label out of range": (
        {"train": [*HUES, 7], "test": HUES},
        NUMBERS,
        [],
        3,
        ["train[12] has the label 7 in 'label', 1 are so; there are 3 classes, 0 to 2"],
    ),
    "no such column": (SPLITS, CLASSES, ["data.label=lable"], 2, ["no column 'lable'", "data.label=label"]),
    "no such field": (
        {split: [{"hue": hue} for hue in hues] for split, hues in SPLITS.items()},
        {"hue": NUMBERS},
        ["data.label=label.heu"],
        2,
        ["no column 'label.heu'", "data.label=label.hue"],
    ),
    "no such image column": (SPLITS, CLASSES, ["data.image=picture"], 2, ["no such column", "there are image, label"]),
    "a column that holds no images": (SPLITS, CLASSES, ["data.image=label"], 2, ["this column holds int64, no images"]),
    "labels that are images": (SPLITS, CLASSES, ["data.label=image"], 3, ["expected numbers or names"]),
    "a measure without bins": ({"train": [0.5, 1.5], "test": [0.5]}, REALS, [], 3, ["holds float", "data.bins=[...]"]),
    "bins for names": (
        {"train": ["a", "b"], "test": ["a"]},
        WORDS,
        ["data.bins=[1.0,2.0]"],
        3,
        ["holds string", "no data.bins, which are for numbers"],
    ),
    "bins that make other classes": (
        SPLITS,
        NUMBERS,
        ["data.bins=[0.5]"],
        2,
        ["1 edges make 2 classes", "data.classes=2"],
    ),
    "bins that do not ascend": (SPLITS, NUMBERS, ["data.bins=[1.5,0.5]"], 2, ["do not ascend"]),
    "no such split": (
        SPLITS,
        CLASSES,
        ["data.test=tets"],
        2,
        ["no split 'tets', there are", "train (12 rows)", "test (6 rows)", "data.test=test"],
    ),
    "a single split": ({"train": HUES}, CLASSES, [], 2, ["no split 'test', there are train (12 rows)", "train[80%:]"]),
    "a slice beyond the end": (
        SPLITS,
        CLASSES,
        ["data.train='train[:13]'"],
        2,
        ["data.train=train[:13]: train has 12 rows, no 13"],
    ),
    "a slice that is none": (SPLITS, CLASSES, ["data.train='train[a:b]'"], 2, ["data.train=train[a:b]: no slice of"]),
    "an empty slice": (SPLITS, CLASSES, ["data.train='train[5:5]'"], 2, ["data.train=train[5:5]: no rows"]),
    "test on train": (
        SPLITS,
        CLASSES,
        ["data.test=train"],
        2,
        ["12 rows of train are in data.train=train and in data"],
    ),
    "test on a part of train": (
        SPLITS,
        CLASSES,
        ["data.train='test+train[:75%]'", "data.test='train[50%:]'"],
        2,
        ["3 rows of train are in data.train=test+train[:75%] and in data.test=train[50%:]"],
    ),
    "a part of train twice": (
        SPLITS,
        CLASSES,
        ["data.train='train+train[:4]'"],
        2,
        ["4 rows of train are twice in data.train=train+train[:4]"],
    ),
    "test twice": (SPLITS, CLASSES, ["data.test='test+test'"], 2, ["6 rows of test are twice in data.test=test+test"]),
    "hidden labels that bins would make a class of": (
        {"train": HUES, "test": [-1] * 6},
        NUMBERS,
        ["data.bins=[0.5,1.5]"],
        3,
        ["test: none of its 6 images has a label in 'label' (missing or negative)"],
    ),
    "more drawn than there are": (SPLITS, CLASSES, ["data.limit=13"], 2, ["data.train=train has 12 rows"]),
    "an unknown setting": (SPLITS, CLASSES, ["data.lable=x"], 2, ["data.lable: unknown key; did you mean data.label?"]),
    "no such source": (SPLITS, CLASSES, ["data.source=./missing"], 2, ["no such folder or file", "OWNER/NAME"]),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_data_are_one_message_and_nothing_is_written(
    parquet: Build, words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    splits, feature, more, code, said = CASES[case]
    assert main(words(parquet(splits, feature), *more)) == code
    assert_one_message(capfd.readouterr().err, said)
    assert not (tmp_path / "set").exists() and not (tmp_path / "out").exists()


def assert_one_message(error: str, said: list[str]) -> None:
    assert error.startswith("error: ") and error.count("error: ") == 1, error
    assert "fix: " in error and "Traceback" not in error
    for part in said:
        assert part in error, error


@pytest.mark.parametrize("left", ["nothing", "another column"])
def test_a_test_split_without_the_column_of_labels_is_named(
    parquet: Build, words: Words, capfd: pytest.CaptureFixture[str], tmp_path: Path, left: str
) -> None:
    root = parquet(SPLITS, CLASSES)
    train, test = (root / f"data/{split}-00000-of-00001.parquet" for split in ("train", "test"))
    if left == "nothing":
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(test).drop_columns("label"), test)
        said = ["test: none of its 6 images has a label in 'label'", "data.test=SPLIT"]
    else:
        parquet({"test": HUES[:6]}, NUMBERS, label="number")
        said = [f"{test} has no column 'label', {train} has one"]
    assert main(words(root)) == 3
    assert_one_message(capfd.readouterr().err, said)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("damage", ["truncated", "a page", "a page header"])
def test_a_corrupted_parquet_file_is_named(
    parquet: Build, words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    root = parquet({"train": HUES * 40, "test": HUES}, CLASSES)
    file = root / "data/train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "a page":
        content[100:2000] = bytes(255 - byte for byte in content[100:2000])
    else:
        content[4] ^= 0xFF
    file.write_bytes(content)
    assert main(words(root)) == 3
    assert_one_message(capfd.readouterr().err, [str(file)])
    assert not (tmp_path / "set").exists()


def test_a_mended_source_is_read_anew(parquet: Build, words: Words, tmp_path: Path) -> None:
    root = parquet({"train": HUES, "test": [0, 1]}, CLASSES)
    assert main(words(root)) == 3
    parquet(SPLITS, CLASSES)
    assert main(words(root)) == 0


def test_a_name_on_the_hub_without_a_network_fails_soon_and_says_how_to_do_without(
    words: Words, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    began = time.monotonic()
    assert main(words("timm/oxford-iiit-pet")) == 3
    assert time.monotonic() - began < 60  # the Hub's own client tries for minutes; seconds on a quiet machine
    assert_one_message(capfd.readouterr().err, ["the Hub does not answer", "the path of a local copy"])
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_a_part_is_drawn_at_random_and_always_the_same(parquet: Build, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(parquet({"train": sorted(HUES * 20), "test": HUES}, CLASSES))
    slices = [open_labelled(resolve(LabelledData, {"source": source, "classes": 3, "limit": 60})) for _ in range(2)]
    assert slices[0] == slices[1]
    rows = [first for _, first, end in slices[0].rows["train"] if end == first + 1]
    assert len(set(rows)) == len(rows) == 60 and rows == sorted(rows)
    assert (
        np.bincount(slices[0].labels("train")).min() > 8
    )  # of 20 expected: not the first rows, which are of one class
    assert capsys.readouterr().out == ""
    open_labelled(resolve(LabelledData, {"source": source, "classes": 3, "limit": 1}))
    assert "1 of 240 rows are drawn: 2 of 3 classes are not among them" in capsys.readouterr().out


def test_edges_of_bins_belong_to_the_class_above(parquet: Build) -> None:
    source = parquet({"train": [0, 8, 19, 20, 998, 999, 1000], "test": [1, 9, 21, 1000]}, NUMBERS)
    data = {"source": str(source), "bins": [8, 20, 999], "classes": 4}
    slices = open_labelled(resolve(LabelledData, data))
    assert slices.labels("train").tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_two_image_columns_must_be_chosen_between(parquet: Build) -> None:
    source = parquet(SPLITS, CLASSES)
    for file in source.rglob("*.parquet"):
        rows = pyarrow.parquet.read_table(file)
        rows = rows.append_column("depth", rows["image"]).replace_schema_metadata(None)
        pyarrow.parquet.write_table(rows, file)
    tree = {"source": str(source), "classes": 3}
    with pytest.raises(ConfigError, match="2 image columns among image, label, depth"):
        open_labelled(resolve(LabelledData, tree))
    assert open_labelled(resolve(LabelledData, tree | {"image": "depth"})).dataset.image == "depth"


def test_one_parquet_file_is_a_source_that_slices_divide(parquet: Build, tmp_path: Path) -> None:
    file = tmp_path / "images.parquet"
    shutil.copy(parquet(SPLITS, CLASSES) / "data/train-00000-of-00001.parquet", file)
    tree = {"source": str(file), "classes": 3, "train": "train[:6]", "test": "train[6:]"}
    slices = open_labelled(resolve(LabelledData, tree))
    assert slices.rows == {"train": (("train", 0, 6),), "test": (("train", 6, 12),)}
