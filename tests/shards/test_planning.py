"""A plan is made once, belongs to its sources and options, and leaves nothing where it fails."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.shards.listing import open_listing, write_listing
from mpp.shards.options import FinalizeOptions, RunOptions, ShardOptions
from mpp.shards.outputs import locked
from mpp.shards.planning import plan, shares
from mpp.shards.sharding import finalize_shards, plan_shards, run_shards, shard_corpus
from mpp.sources.corpora import Source
from mpp.sources.entries import Entry
from mpp.sources.folders import Folder

Corpus = Callable[..., Path]


def planned(source: Path | str, out: Path | str, **options: Any) -> dict[str, Any]:
    return plan(ShardOptions(source=str(source), out=str(out), workers=0, **options), Console(quiet=True))


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_plan_cuts_every_split_and_numbers_every_image(corpus: Corpus, tmp_path: Path) -> None:
    source = corpus(*(f"train/{number}.jpg" for number in range(12)), *(f"val/{number}.jpg" for number in range(3)))
    layout = planned(source, tmp_path / "out", shard_samples=5)
    assert layout["images"] == {"train": 12, "validation": 3}
    assert layout["bounds"] == {"train": [0, 4, 8, 12], "validation": [0, 3]}
    assert layout == json.loads((tmp_path / "out/.mpp/layout.json").read_text())
    assert open_listing(tmp_path / "out").splits == layout["images"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": "folders"}, ConfigError, "lies in no class folder"),
        ({"labels": "weather"}, ConfigError, "labels=weather"),
        ({"image": "png"}, ConfigError, "no columns"),
    ],
)
def test_a_plan_that_fails_leaves_nothing(
    corpus: Corpus, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = corpus("a/1.jpg", "2.jpg")
    before = everything(tmp_path)
    with pytest.raises(error, match=message):
        planned(source, tmp_path / "new/deep/out", **options)
    assert everything(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        planned(source, tmp_path / "empty", **options)
    assert everything(tmp_path) == before | {"empty"}


def test_a_finished_set_is_untouched_by_a_plan_that_does_not_fit(corpus: Corpus, tmp_path: Path) -> None:
    source = corpus("a/1.jpg", "b/2.jpg")
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "out"), workers=0))
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match="dedupe: none there, exact now"):
        planned(source, tmp_path / "out", dedupe="exact")
    assert everything(tmp_path) == before


def test_the_listing_stays_until_all_is_finished(corpus: Corpus, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    plan_shards(ShardOptions(source=str(corpus("1.jpg", "2.jpg")), out=out))
    run_shards(RunOptions(out=out, workers=0))
    assert (tmp_path / "out/.mpp/listing").is_dir()
    finalize_shards(FinalizeOptions(out=out))
    assert not (tmp_path / "out/.mpp/listing").exists()


def source(weight: float | None = None, limit: int | None = None) -> Source:
    return Source(corpus=Folder(root=Path("/x")), weight=weight, limit=limit)


def test_limits_and_weights_say_how_many_images_of_each_source_are_taken() -> None:
    assert shares([10, 5], [source(), source(limit=3)]) == [10, 3]
    assert shares([10, 50], [source(1), source(1)]) == [10, 10]
    assert shares([10, 50], [source(1), source(3)]) == [10, 30]
    assert shares([10, 20], [source(1), source(3)]) == [7, 20]
    assert shares([100, 100], [source(1, limit=6), source(2)]) == [6, 12]
    assert shares([0, 20], [source(1), source(3)]) == [0, 20]
    assert shares([0, 0], [source(1), source(3)]) == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0.01, 100)), min_size=1, max_size=5))
def test_weighted_sources_stand_in_their_proportion_and_one_is_taken_whole(pairs: list[tuple[int, float]]) -> None:
    counts = [count for count, _ in pairs]
    taken = shares(counts, [source(weight) for _, weight in pairs])
    assert all(0 <= some <= count for some, count in zip(taken, counts, strict=True))
    assert not any(counts) or any(some == count > 0 for some, count in zip(taken, counts, strict=True))
    shown = [(some, weight) for (count, weight), some in zip(pairs, taken, strict=True) if count]
    for (some, weight), (other, beside) in itertools.combinations(shown, 2):
        assert abs(some * beside - other * weight) <= max(weight, beside)


def test_several_sources_become_one_set(corpus: Corpus, tmp_path: Path) -> None:
    corpus(*(f"cats/{number}.jpg" for number in range(20)), folder="first")
    corpus(*(f"dogs/{number}.jpg" for number in range(20)), folder="second")
    lines = "- {source: first, labels: folders, weight: 1}\n- {source: second, labels: folders, weight: 3}\n"
    (tmp_path / "mix.yaml").write_text("sources:\n" + lines)
    layout = planned(tmp_path / "mix.yaml", tmp_path / "out")
    assert layout["images"] == {"train": 27} and layout["classes"] == ["cats", "dogs"]
    again = planned(tmp_path / "mix.yaml", tmp_path / "again")
    assert again["layout_hash"] == layout["layout_hash"]
    assert planned(tmp_path / "mix.yaml", tmp_path / "other", seed=1)["listing_hash"] != layout["listing_hash"]
    with pytest.raises(ConfigError, match="one inside the other"):
        planned(tmp_path / "mix.yaml", tmp_path / "second/out")


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(DataError, match="no"):
        planned(tmp_path / "list.csv", tmp_path / "out")
    assert everything(tmp_path) == {"list.csv"}


def test_a_plan_that_was_killed_is_no_stranger(corpus: Corpus, tmp_path: Path) -> None:
    source, out = corpus("1.jpg", "2.jpg"), tmp_path / "out"
    (out / ".mpp/listing.new").mkdir(parents=True)
    (out / ".mpp/listing.new/train.arrow").write_bytes(b"half")
    (out / ".mpp/lock").touch()
    assert planned(source, out)["images"] == {"train": 2}


def test_a_second_plan_leaves_the_work_of_the_first_alone(corpus: Corpus, tmp_path: Path) -> None:
    source, out = corpus("1.jpg", "2.jpg"), tmp_path / "out"
    with locked(out):
        (out / ".mpp/listing.new").mkdir()
        before = everything(tmp_path)
        with pytest.raises(ConfigError, match="another mpp-shard is writing"):
            planned(source, out)
        assert everything(tmp_path) == before


def test_a_set_keeps_its_format_while_its_sources_are_away(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus("one", "two")  # JPEGs by their content alone

    def gone(*_: object) -> bytes:
        raise OSError("away")

    assert planned(source, tmp_path / "out")["format"] == "jpg"
    monkeypatch.setattr(Folder, "read", gone)
    assert planned(source, tmp_path / "out")["format"] == "jpg"
    assert planned(source, tmp_path / "other")["format"] == "png"


def test_a_store_that_holds_something_else_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    source, theirs = corpus("1.jpg", "2.jpg"), tmp_path / "theirs/train/train-000000.tar"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="is not empty and was not written by mpp-shard"):
        planned(source, f"file://{tmp_path}/theirs", work=tmp_path / "work")
    assert theirs.read_bytes() == b"precious" and not (tmp_path / "work").exists()
    with pytest.raises(ConfigError, match="one inside the other"):
        planned(source, f"file://{source}/out", work=tmp_path / "work")


@pytest.mark.parametrize("split", ["listing", "tmp", "lock", "../up", "", "a/b", ".hidden"])
def test_a_split_that_cannot_be_a_folder_of_ours_is_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match="split"):
        write_listing(tmp_path / "listing", [Named(split=split)], auto_labels=True)


@config
class Named:
    """Lists one image in a split of any name."""

    kind: Literal["named"] = "named"
    split: str

    def entries(self) -> Iterator[Entry]:
        yield Entry(self.split, b"", "image", 1, None)

    def classes(self) -> None:
        return None

    def describe(self) -> str:
        return "named"

    def read(self, split: str, place: bytes) -> bytes:
        return b""


def test_a_source_that_grows_while_shares_are_counted_gives_what_was_counted(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus("1.jpg", "2.jpg")
    (tmp_path / "mix.yaml").write_text("sources:\n- {source: source, limit: 2}\n")
    listed, calls = Folder.entries, list[int]()

    def growing(folder: Folder) -> Iterator[Entry]:
        calls.append(1)
        yield from listed(folder)
        if len(calls) == 2:
            yield Entry("train", b"3.jpg", "3.jpg", 1, None)

    monkeypatch.setattr(Folder, "entries", growing)
    assert planned(tmp_path / "mix.yaml", tmp_path / "out")["images"] == {"train": 2} and source.is_dir()
