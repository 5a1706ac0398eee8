"""What is done is told from what is begun, and no image is lost from the counts."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.errors import DataError
from mpp.shards.options import ShardOptions
from mpp.shards.outputs import LocalOutput, RemoteOutput
from mpp.shards.records import Counts, committed, open_layout, shard_places
from mpp.shards.sharding import shard_corpus
from mpp.shards.shardset import ShardRecord


@pytest.fixture
def output(corpus: Callable[..., Path], tmp_path: Path) -> LocalOutput:
    source = corpus(*(f"{number}.jpg" for number in range(10)))
    (source / "bad.jpg").write_bytes(b"<html>")
    options = ShardOptions(
        source=str(source), out=str(tmp_path / "out"), shard_samples=4, workers=0, max_refused=1, labels="none"
    )
    shard_corpus(options)
    return LocalOutput(tmp_path / "out")


def done(output: LocalOutput) -> tuple[list[ShardRecord], Counts]:
    layout = open_layout(output)
    return committed(output, layout, shard_places(layout))


def test_the_places_cover_the_layout(output: LocalOutput) -> None:
    places = list(shard_places(open_layout(output)))
    assert [place.name for place in places] == [f"train/train-{number:06d}.tar" for number in range(3)]
    assert [place.images for place in places] == [4, 4, 3]


@pytest.mark.parametrize(
    "part", ["train/train-000001.tar", "train/train-000001.tar.idx", ".mpp/train/train-000001.members"]
)
@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_shard_with_a_missing_or_cut_file_is_not_done(output: LocalOutput, part: str, fault: str) -> None:
    assert len(done(output)[0]) == 3
    path = output.root / part
    if fault == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 8)
    assert [record.name[-5] for record in done(output)[0]] == ["0", "2"]


def test_a_damaged_or_foreign_record_is_not_done(output: LocalOutput) -> None:
    path = output.root / ".mpp/train/train-000001.json"
    record = json.loads(path.read_text())
    for text in ("", "{}", "[]", json.dumps({**record, "layout_hash": "other"})):
        path.write_text(text)
        assert len(done(output)[0]) == 2


def test_taken_and_refused_are_listed(output: LocalOutput) -> None:
    records, counts = done(output)
    assert (counts.listed, counts.taken, dict(counts.refused)) == (11, 10, {"not_image": 1})
    assert sum(record.samples for record in records) == 10
    with pytest.raises(AssertionError, match="do not add up"):
        Counts().add({"name": "x", "samples": 1, "listed": 3, "notes": {}, "refusals": [("a", "empty", "", "")]})


def test_a_folder_without_a_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is planned here"):
        open_layout(LocalOutput(tmp_path))


def test_only_the_places_asked_for_are_looked_at(output: LocalOutput) -> None:
    layout = open_layout(output)
    (output.root / ".mpp/train/train-000000.json").unlink()
    records, counts = committed(output, layout, list(shard_places(layout))[:2])
    assert [record.name for record in records] == ["train/train-000001.tar"] and counts.listed == 4


def test_local_files_of_another_set_are_refused(output: LocalOutput, tmp_path: Path) -> None:
    store = RemoteOutput(f"file://{output.root}", tmp_path / "work")
    (tmp_path / "work/.mpp").mkdir(parents=True)
    layout = json.loads((output.root / ".mpp/layout.json").read_text())
    (tmp_path / "work/.mpp/layout.json").write_text(json.dumps(layout))
    assert open_layout(store) == layout
    (tmp_path / "work/.mpp/layout.json").write_text(json.dumps(layout | {"layout_hash": "other"}))
    with pytest.raises(DataError, match="has another layout than"):
        open_layout(store)
