"""Rows of a dataset's splits become splits of our own: their bytes and classes, in any process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.config import dump
from mpp.errors import DataError
from mpp.sources.corpora import open_corpus
from mpp.sources.slices import MISSING, Slices, numbers_of
from mpp.sources.tables import Dataset

Jpeg = Callable[[int], bytes]
NAMES = ("cat", "dog", "owl")


def arrow(folder: Path, split: str, jpeg: Jpeg, labels: list[Any]) -> str:
    rows = {"image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(folder / split))
    return str(next((folder / split).glob("*.arrow")))


@pytest.fixture
def slices(tmp_path: Path, jpeg: Jpeg) -> Slices:
    tables = {"a": (arrow(tmp_path, "a", jpeg, [0, 1, 2, 0, 1]),), "b": (arrow(tmp_path, "b", jpeg, [2, 1, 0]),)}
    dataset = Dataset(root="somewhere", tables=tables, image="image", label="label")
    rows = {"train": (("a", 1, 3), ("b", 0, 2)), "test": (("a", 4, 5), ("a", 0, 1))}
    return Slices(dataset=dataset, rows=rows, names=NAMES)


def test_rows_come_in_the_order_of_the_slices_with_their_bytes_and_classes(slices: Slices, jpeg: Jpeg) -> None:
    again = open_corpus(dump(slices))
    listed = list(again.entries())
    assert [(entry.split, entry.source, entry.label) for entry in listed] == [
        ("train", "a[1] 1.jpg", "dog"),
        ("train", "a[2] 2.jpg", "owl"),
        ("train", "b[0] 0.jpg", "owl"),
        ("train", "b[1] 1.jpg", "dog"),
        ("test", "a[4] 4.jpg", "dog"),
        ("test", "a[0] 0.jpg", "cat"),
    ]
    assert again.classes() == NAMES
    for entry, number in zip(listed, (1, 2, 0, 1, 4, 0), strict=True):
        assert again.read(entry.split, entry.place) == jpeg(number)
        assert entry.size == len(jpeg(number))
    assert slices.labels("train").tolist() == [1, 2, 2, 1]


def test_a_label_that_is_no_class_is_named_by_its_row(slices: Slices) -> None:
    fewer = Slices(dataset=slices.dataset, rows=slices.rows, names=NAMES[:2])
    with pytest.raises(
        DataError, match=r"a\[2\] has the label 2 in 'label', 2 are so; there are 2 classes, cat to dog"
    ):
        fewer.labels("train")


@given(st.lists(st.one_of(st.none(), st.integers(-3, 5)), max_size=20))
def test_numbers_are_classes_and_all_that_is_no_number_is_missing(values: list[int | None]) -> None:
    found = numbers_of(pyarrow.chunked_array([values], pyarrow.int64()), (), NAMES)
    assert found.tolist() == [MISSING if value is None or value < 0 else value for value in values]


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), max_size=20))
def test_bins_count_the_edges_at_or_below_a_value(values: list[float | None]) -> None:
    edges = (-1.0, 0.5)
    found = numbers_of(pyarrow.chunked_array([values], pyarrow.float64()), edges, NAMES)
    assert found.tolist() == [MISSING if v is None else sum(edge <= v for edge in edges) for v in values]


@given(st.lists(st.one_of(st.none(), st.integers(-3, 5)), max_size=20))
def test_whole_numbers_below_zero_are_missing_with_bins_too(values: list[int | None]) -> None:
    found = numbers_of(pyarrow.chunked_array([values], pyarrow.int64()), (1.0, 3.0), NAMES)
    assert found.tolist() == [MISSING if v is None or v < 0 else (v >= 1) + (v >= 3) for v in values]


def test_names_are_looked_up_and_unknown_ones_lie_beyond_all() -> None:
    values = pyarrow.chunked_array([["owl", None, "fox"], ["cat"]])
    assert numbers_of(values, (), NAMES).tolist() == [2, MISSING, 3, 0]
    assert numbers_of(pyarrow.chunked_array([[float("nan"), 1.0]]), (0.5,), NAMES).tolist() == [MISSING, 1]
    assert numbers_of(values, (), NAMES).dtype == np.int64
