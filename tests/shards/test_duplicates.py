"""Of equal images the first in the order of the set stays, whatever was hashed when, and nothing needless is read."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mpp.shards.duplicates import (
    HASHED,
    RECORDS,
    TABLE,
    Copies,
    Digests,
    HashTask,
    by_split,
    candidates,
    duplicates_table,
    equal_numbers,
    find_duplicates,
    hash_items,
    read_copies,
)
from mpp.shards.listing import FOLDER, open_listing, write_listing
from mpp.sources.entries import UNKNOWN
from mpp.sources.folders import Folder

QUIET = Console(quiet=True)
CONTENTS = st.dictionaries(
    st.sampled_from(["validation", "train", "test"]),
    st.lists(st.sampled_from([b"", b"a", b"b", b"cc", b"dd", b"eee"])),
    min_size=1,
)
Image = tuple[str, int]


def here(function: Callable[[HashTask], Digests], tasks: Sequence[HashTask]) -> Iterator[Digests]:
    """Run tasks in this process, the last one first."""
    return map(function, reversed(tasks))


def known_originals(found: dict[str, Copies], counts: dict[str, int]) -> dict[Image, Image]:
    asked = {(split, item): found[split].original(item) for split, count in counts.items() for item in range(count)}
    return {image: original for image, original in asked.items() if original is not None}


@given(st.lists(st.integers(0, 5)), st.randoms())
def test_every_number_but_the_lowest_of_equal_digests_is_a_copy_of_it(digests: list[int], random: Random) -> None:
    hashed = np.zeros(len(digests), HASHED)
    hashed["number"] = np.arange(len(digests))
    hashed["digest"] = np.array([digests, digests]).T // [2, 1] % [3, 2]  # either half alone occurs in others
    copies, originals = equal_numbers(hashed[random.sample(range(len(digests)), len(digests))])
    expected = {number: digests.index(digest) for number, digest in enumerate(digests)}
    assert copies.tolist() == [number for number, first in expected.items() if number != first]
    assert originals.tolist() == [expected[number] for number in copies.tolist()]


@given(CONTENTS, st.data())
def test_no_image_that_has_a_copy_escapes_hashing(contents: dict[str, list[bytes]], data: st.DataObject) -> None:
    sizes = {
        split: np.array([data.draw(st.sampled_from([len(image), UNKNOWN])) for image in images], np.int64)
        for split, images in contents.items()
    }
    everything = [(split, item, image) for split, images in contents.items() for item, image in enumerate(images)]
    unknown = {(split, item): len(image) for split, item, image in everything if sizes[split][item] == UNKNOWN}
    found = candidates(sizes, np.array(list(unknown.values()), np.int64))
    hashed = {(split, item) for split, items in found.items() for item in items.tolist()} | unknown.keys()
    counts = Counter(image for _, _, image in everything)
    assert {(split, item) for split, item, image in everything if counts[image] > 1} <= hashed


def test_an_image_of_a_size_of_its_own_is_not_hashed() -> None:
    found = candidates({"train": np.array([5, 7, UNKNOWN, 5, 9, 6]), "test": np.array([9, 8])}, np.array([6]))
    assert {split: items.tolist() for split, items in found.items()} == {"train": [0, 3, 4, 5], "test": [0]}


@given(CONTENTS)
def test_copies_are_those_that_a_walk_through_the_set_would_find(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, list[bytes]]
) -> None:
    in_order = [*sorted(contents.keys() - {"train"}), *(["train"] if "train" in contents else [])]
    seen: dict[bytes, Image] = {}
    expected = {}
    for split in in_order:
        for item, image in enumerate(contents[split]):
            if seen.setdefault(image, (split, item)) != (split, item):
                expected[split, item] = seen[image]
    sizes = {split: np.zeros(len(images), np.int64) for split, images in contents.items()}
    images = [image for split in in_order for image in contents[split]]
    hashed = np.zeros(len(images), HASHED)
    hashed["number"] = np.arange(len(images))
    hashed["digest"][:, 1] = [int.from_bytes(image, "little") for image in images]
    found = by_split(*equal_numbers(hashed), sizes)
    counts = {split: len(images) for split, images in contents.items()}
    assert known_originals(found, counts) == expected

    out = tmp_path_factory.mktemp("out")
    (out / RECORDS).mkdir()
    (out / TABLE).write_bytes(duplicates_table(found))
    stored = {split: read_copies(out, split) for split in contents}
    assert known_originals(stored, counts) == expected


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with the listing of a source of two splits, with copies, empty files and one that cannot be read."""
    source = tmp_path / "source"
    files = {
        "train/0.jpg": b"same", "train/1.jpg": b"also", "train/2.jpg": b"", "train/3.jpg": b"longer",
        "train/4.jpg": b"", "train/5.jpg": b"also", "test/0.jpg": b"once", "test/1.jpg": b"same",
    }  # fmt: skip
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / "train/6.jpg").symlink_to("nowhere")
    write_listing(tmp_path / "out" / FOLDER, [Folder(root=source, labels="none")], auto_labels=True)
    return tmp_path / "out"


def sizes_of(out: Path) -> dict[str, npt.NDArray[np.int64]]:
    listing = open_listing(out)
    return {split: listing.sizes(split) for split in listing.splits}


@pytest.mark.parametrize("per_task", [1, 2, 4096])
def test_copies_of_test_images_are_dropped_from_train(
    out: Path, per_task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpp.shards.duplicates.ITEMS_PER_TASK", per_task)
    found = find_duplicates(out, sizes_of(out), here, QUIET)
    expected = {("train", 0): ("test", 1), ("train", 5): ("train", 1)}
    assert known_originals(found, {"test": 2, "train": 7}) == expected


def test_an_unknown_size_makes_only_images_of_that_size_read(out: Path) -> None:
    asked: list[tuple[str, int]] = []

    def watched(function: Callable[[HashTask], Digests], tasks: Sequence[HashTask]) -> Iterator[Digests]:
        asked.extend((task.split, item) for task in tasks for item in task.items.tolist())
        return here(function, tasks)

    sizes = {"test": np.array([4, UNKNOWN]), "train": np.array([4, 40, 0, 6, 0, 41, UNKNOWN])}
    found = find_duplicates(out, sizes, watched, QUIET)
    assert known_originals(found, {"test": 2, "train": 7}) == {("train", 0): ("test", 1)}
    unread = {("train", 1), ("train", 3), ("train", 5)}
    assert unread.isdisjoint(asked) and len(set(asked)) == len(asked) == 9 - len(unread)


def test_only_what_could_be_read_is_hashed(out: Path) -> None:
    os.remove(out.parent / "source/train/1.jpg")
    read = hash_items(HashTask(out, "train", np.arange(7)))
    assert (read.asked, read.items.tolist(), read.digests.shape) == (7, [0, 3, 5], (3, 2))
    assert read.sizes.tolist() == [4, 6, 4]


def test_an_empty_listing_has_no_copies(tmp_path: Path) -> None:
    found = find_duplicates(tmp_path, {"train": np.zeros(0, np.int64)}, here, QUIET)
    assert found["train"].original(0) is None


def test_real_images_are_all_different_and_found_again_in_another_split(data: Path, tmp_path: Path) -> None:
    originals = sorted((data / "imagenette/test").rglob("*.JPEG"))[:60]
    for number, image in enumerate(originals):
        for split in ("test", "train")[: 1 + number % 2]:
            (tmp_path / "source" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / split / image.name).symlink_to(image)
    out = tmp_path / "out"
    listing = write_listing(out / FOLDER, [Folder(root=tmp_path / "source", labels="none")], auto_labels=True)
    found = find_duplicates(out, sizes_of(out), here, QUIET)
    names = {split: [row.source for row in listing.rows(split, np.arange(listing.splits[split]))] for split in found}
    copies = known_originals(found, listing.splits)
    assert len(copies) == listing.splits["train"] == 30
    for (split, item), (original_split, original) in copies.items():
        assert (split, original_split) == ("train", "test")
        assert Path(names["train"][item]).name == Path(names["test"][original]).name
