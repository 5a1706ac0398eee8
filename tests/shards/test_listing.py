"""A listing holds every image once, numbers the classes, and gives any rows back from the disk."""

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.shards.listing import ROWS, Listing, write_listing
from mpp.sources.entries import UNKNOWN, Corpus, Entry, Label


@config
class Stub:
    """Lists ``labels`` as images of train, ``known`` being the names of numbers."""

    kind: Literal["stub"] = "stub"
    labels: Any
    known: tuple[str, ...] | None = None
    split: str = "train"

    def entries(self) -> Iterator[Entry]:
        for number, label in enumerate(self.labels):
            yield Entry(self.split, b"%d" % number, f"{self.split}/ü{number}", number % 7 or UNKNOWN, label)

    def classes(self) -> tuple[str, ...] | None:
        return self.known

    def describe(self) -> str:
        return "stub"

    def read(self, split: str, place: bytes) -> bytes:
        return place


def listed(folder: Path, *corpora: Corpus, auto: bool = True) -> Listing:
    return write_listing(folder / "listing", corpora, auto_labels=auto)


def numbers(listing: Listing, split: str = "train") -> list[int | None]:
    return [row.label for row in listing.rows(split, np.arange(listing.splits[split]))]


def test_any_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    count = 2 * ROWS + 5
    listing = listed(tmp_path, Stub(labels=["b", "a"] * (count // 2) + ["b"]), Stub(labels=["c"], split="test"))
    assert listing.splits == {"test": 1, "train": count} and listing.classes == ("a", "b", "c")
    items = np.array([count - 1, 0, ROWS, ROWS - 1, 7])
    rows = listing.rows("train", items)
    assert [row.place for row in rows] == [b"%d" % item for item in items]
    assert [row.source for row in rows] == [f"train/ü{item}" for item in items]
    assert [row.size for row in rows] == [item % 7 or UNKNOWN for item in items.tolist()]
    assert [row.label for row in rows] == [1 - item % 2 for item in items.tolist()]
    assert listing.rows("test", np.array([0]))[0].corpus == 1
    assert listing.sizes("train").tolist() == [item % 7 or UNKNOWN for item in range(count)]


@pytest.mark.parametrize(
    ("labels", "known", "classes", "expected"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        ([2, 0, 2], None, ("0", "1", "2"), [2, 0, 2]),
        ([2, 0, 2], ("x", "y", "z"), ("x", "y", "z"), [2, 0, 2]),
        ([1, 1], ("z", "a"), ("z", "a"), [1, 1]),
        (["a", "a"], None, None, [None, None]),
        (["a", None, "b"], None, None, [None] * 3),
        ([None, None], None, None, [None, None]),
    ],
)
def test_labels_are_numbered_by_class_where_every_image_has_one(
    tmp_path: Path,
    labels: Sequence[Label],
    known: tuple[str, ...] | None,
    classes: tuple[str, ...] | None,
    expected: list[int | None],
) -> None:
    listing = listed(tmp_path, Stub(labels=labels, known=known))
    assert listing.classes == classes
    assert numbers(listing) == expected


def test_one_class_is_one_where_labels_were_asked_for(tmp_path: Path) -> None:
    assert listed(tmp_path, Stub(labels=["a", "a"]), auto=False).classes == ("a",)


def test_several_sources_agree_on_classes_by_name(tmp_path: Path) -> None:
    listing = listed(tmp_path, Stub(labels=[0, 1], known=("dog", "cat")), Stub(labels=["cat", "ant"]))
    assert listing.classes == ("ant", "cat", "dog")
    assert numbers(listing) == [2, 1, 1, 0]
    with pytest.raises(ConfigError, match="some labels are names and some are numbers"):
        listed(tmp_path / "b", Stub(labels=[0]), Stub(labels=["cat"]))
    with pytest.raises(DataError, match="label 2, there are 1 classes"):
        listed(tmp_path / "c", Stub(labels=[2], known=("x",)))


def test_the_hash_follows_sources_sizes_labels_and_classes(tmp_path: Path) -> None:
    corpora = [
        (Stub(labels=["a", "b"]),),
        (Stub(labels=["b", "a"]),),
        (Stub(labels=["a", "b", "b"]),),
        (Stub(labels=[0, 1]),),
        (Stub(labels=[0, 1], known=("a", "b")),),
        (Stub(labels=[0, 1], known=("a", "b", "c")),),
        (Stub(labels=["a", "b"], split="test"),),
        (Stub(labels=["a"]), Stub(labels=["b"])),
    ]
    hashes = [listed(tmp_path / str(number), *some).summary["hash"] for number, some in enumerate(corpora)]
    assert hashes[0] == hashes[4]  # the names alone count
    assert len(set(hashes)) == len(hashes) - 1
    assert listed(tmp_path / "again", *corpora[0]).summary["hash"] == hashes[0]


def test_a_choice_of_images_is_a_listing_of_them_alone(tmp_path: Path) -> None:
    corpora = [Stub(labels=[None] * 10), Stub(labels=[None] * 4, split="test")]
    listing = write_listing(
        tmp_path, corpora, auto_labels=True, keep=lambda corpus, split, item: corpus == 0 and item % 3 == 0
    )
    assert listing.splits == {"train": 4}
    assert [row.place for row in listing.rows("train", np.arange(4))] == [b"0", b"3", b"6", b"9"]
    assert listing.summary["found"] == {"train": [10, 0], "test": [0, 4]}


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            listing = listed(tmp_path / str(count), Endless(count=count))
            listing.rows("train", np.arange(0, count, count // 10))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(ROWS)
    assert peak(20 * ROWS) < 1.2 * peak(4 * ROWS)


@config
class Endless:
    """Lists ``count`` images without holding any."""

    kind: Literal["endless"] = "endless"
    count: int

    def entries(self) -> Iterator[Entry]:
        for number in range(self.count):
            yield Entry("train", b"%d" % number, f"{number}.jpg", 100, None)

    def classes(self) -> None:
        return None

    def describe(self) -> str:
        return "endless"

    def read(self, split: str, place: bytes) -> bytes:
        return b""


def test_numbers_that_number_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels go up to 900000000, but there are 2 different ones"):
        listed(tmp_path, Stub(labels=[900_000_000, 5]))
    assert len(listed(tmp_path / "b", Stub(labels=[999, 5])).classes or ()) == 1000
