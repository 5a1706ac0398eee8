"""The balance counts every label once, in the records or, without them, in the sample."""

from collections import Counter
from pathlib import Path

import pytest

from mpp.report.balance import CURVE_POINTS, ENDS, MOST_CLASSES, balance
from mpp.report.samples import Sample, sample_split
from mpp.shards.shardset import ShardSet, open_shards

NOWHERE = {"train": None, "test": None}


@pytest.fixture
def sets(tiny_shards: Path) -> list[ShardSet]:
    return [open_shards(tiny_shards, split) for split in ("train", "test")]


@pytest.fixture
def samples(sets: list[ShardSet]) -> list[Sample]:
    return [sample for shards in sets for sample in sample_split(shards, 1000)]


def test_a_whole_sample_gives_the_counts_of_the_set(sets: list[ShardSet], samples: list[Sample]) -> None:
    found = balance(sets, NOWHERE, samples)  # 60 and 31 images of three classes in turn
    assert found is not None
    (rows,) = found.groups
    assert [(row.name, row.counts, row.total) for row in rows] == [
        ("class0", (20, 11), 31),
        ("class1", (20, 10), 30),
        ("class2", (20, 10), 30),
    ]
    assert [row.width for row in rows] == [1, 30 / 31, 30 / 31]
    assert all(row.picture and row.picture.startswith("data:image/jpeg;base64,") for row in rows)
    assert (found.classes, found.empty, found.counted, found.curve) == (3, 0, 91, ())
    assert (found.most, found.median, found.least) == (31, 30, 30)


def test_records_go_before_the_sample_where_every_split_has_them(sets: list[ShardSet], samples: list[Sample]) -> None:
    recorded = {"train": Counter({0: 900, 2: 5}), "test": Counter({2: 1})}
    found = balance(sets, recorded, samples)
    assert found is not None and (found.counted, found.empty) == (906, 1)
    assert [(row.name, row.counts) for row in found.groups[0]] == [
        ("class0", (900, 0)),
        ("class2", (5, 1)),
        ("class1", (0, 0)),
    ]
    partly = balance(sets, recorded | {"test": None}, samples)
    assert partly is not None and partly.counted == 91


def test_of_many_classes_both_ends_are_rows_and_all_are_on_the_curve(
    sets: list[ShardSet], samples: list[Sample]
) -> None:
    many = {label: 1000 - label for label in range(10 * MOST_CLASSES)}
    found = balance(sets, {"train": Counter(many), "test": Counter()}, samples)
    assert found is not None
    most, least = found.groups
    assert [row.total for row in most] == [1000 - label for label in range(ENDS)]
    assert [row.total for row in least] == [601 + ENDS - 1 - place for place in range(ENDS)]
    assert [row.picture is not None for row in most] == [True] * 3 + [False] * (ENDS - 3)
    assert least[-1].name == str(10 * MOST_CLASSES - 1), "a label beyond the names goes by its number"
    assert len(found.curve) == CURVE_POINTS
    assert (found.curve[0], found.curve[-1]) == ((0, 1), (1, 0.601))
    assert all(y == pytest.approx(1 - x * 0.399, abs=1e-9) for x, y in found.curve)


def test_without_labels_there_is_no_balance(bare_tiny_shards: Path) -> None:
    shards = open_shards(bare_tiny_shards, "train")
    assert balance([shards], {"train": Counter()}, list(sample_split(shards, 9))) is None
    assert balance([], {}, []) is None
