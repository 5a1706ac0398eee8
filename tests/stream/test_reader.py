"""The reader returns the bytes that were sharded, by id, and notices one flipped bit."""

import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_server import ALWAYS, FaultyServer

from mpp.errors import DataError
from mpp.shards.shardset import ShardSet, open_shards, read_members
from mpp.sources import remote as remote_module
from mpp.stream import storage as storage_module
from mpp.stream.reader import ShardReader

NUM_SAMPLES = 37


def all_from_tars(shards: ShardSet, extension: str) -> list[bytes]:
    found = []
    for shard in shards.shards:
        with tarfile.open(Path(shards.root, shard.name)) as tar:
            members = [member for member in tar if member.name.endswith(extension)]
            found += [file.read() for member in members if (file := tar.extractfile(member)) is not None]
    return found


def test_every_sample_is_what_the_tar_holds(shards: ShardSet) -> None:
    reader = ShardReader(shards)
    pairs = [reader.read(sample_id) for sample_id in range(shards.samples)]
    assert shards.samples == NUM_SAMPLES and len(shards.shards) == 4
    assert [image for image, _ in pairs] == all_from_tars(shards, ".jpg")
    assert [label for _, label in pairs] == [int(text) for text in all_from_tars(shards, ".cls")]


def test_all_labels_at_once_are_those_of_the_samples(shards: ShardSet) -> None:
    reader = ShardReader(shards)
    labels = reader.labels()
    assert labels.dtype == np.int64
    assert labels.tolist() == [reader.read(sample_id)[1] for sample_id in range(shards.samples)]


def test_a_set_without_labels_gives_images_and_says_what_is_missing(bare_shards: ShardSet) -> None:
    reader = ShardReader(bare_shards)
    assert reader.read(0)[1] is None
    with pytest.raises(DataError, match=r"carries no labels(.|\n)*labels=folders"):
        reader.labels()


def test_one_flipped_bit_is_found_and_the_sample_named(tmp_path: Path, make_set: Callable[..., ShardSet]) -> None:
    shards = make_set(tmp_path, "folders", images=12, shard_samples=5)
    shard, row, column = 1, 2, shards.shards[1].members.index("jpg")
    offset, size, _ = read_members(shards, shard)[row, column].item()
    with open(Path(shards.root, shards.shards[shard].name), "r+b") as tar:
        os.fchmod(tar.fileno(), 0o644)
        tar.seek(offset + size // 2)
        byte = tar.read(1)[0]
        tar.seek(offset + size // 2)
        tar.write(bytes([byte ^ 1]))
    reader = ShardReader(open_shards(shards.root, "train"))
    bad = shards.shards[0].samples + row
    for sample_id in range(shards.samples):
        if sample_id != bad:
            reader.read(sample_id)
    with pytest.raises(
        DataError, match=r"train/train-000001\.tar:2 \(key 0000\d+\): the jpg member is damaged(.|\n)*mpp verify"
    ):
        reader.read(bad)


def test_a_shard_that_disappears_is_named(tmp_path: Path, make_set: Callable[..., ShardSet]) -> None:
    shards = make_set(tmp_path, "none", images=4)
    Path(shards.root, shards.shards[0].name).unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: No such file"):
        ShardReader(shards).read(0)


def test_a_pickled_reader_opens_its_own_files(shards: ShardSet) -> None:
    reader = ShardReader(shards)
    expected = reader.read(NUM_SAMPLES - 1)
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy.read(NUM_SAMPLES - 1) == expected == reader.read(NUM_SAMPLES - 1)


def test_only_so_many_shards_stay_open(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "MOST_OPEN", 2)
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(shards)
    images = [reader.read(sample_id)[0] for sample_id in range(NUM_SAMPLES)]
    assert len(os.listdir("/proc/self/fd")) == before + 4  # two tars and their tables
    assert images == all_from_tars(shards, ".jpg")


def test_a_micro_batch_asks_a_server_for_all_its_ranges_at_once(
    faulty_server: FaultyServer, make_set: Callable[..., ShardSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "STALL_SECONDS", 30.0)  # a request tried again would come to the meeting, too
    local = make_set(faulty_server.folder, "folders")
    remote = replace(open_shards(faulty_server.url("set"), "train"), root=faulty_server.url("set"))
    ids = np.array([0, 11, 22, 35, 12])  # four shards; 11 and 12 lie side by side
    reader = ShardReader(remote)
    reader.read_all(ids)  # the tables are here after this
    faulty_server.meeting = threading.Barrier(4)
    faulty_server.add_faults("*.tar", ["meet"] * 4)
    asked = faulty_server.asked("*.tar")
    assert [sample.image for sample in reader.read_all(ids)] == [ShardReader(local).read(one).image for one in ids]
    assert faulty_server.asked("*.tar") == asked + 4


def test_one_range_of_several_that_never_comes_is_named(
    faulty_server: FaultyServer, make_set: Callable[..., ShardSet]
) -> None:
    make_set(faulty_server.folder, "folders")
    remote = replace(open_shards(faulty_server.url("set"), "train"), root=faulty_server.url("set"))
    faulty_server.add_faults("*000002.tar", ALWAYS("404"))
    with pytest.raises(DataError, match=r"train-000002\.tar.*404"):
        ShardReader(remote).read_all(np.array([0, 11, 22, 35]))
