"""Whole epochs over faults: killed and stopped workers, cut, flipped and replaced shards, servers that fail."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_server import ALWAYS, FaultyServer

from mpp.config import resolve
from mpp.errors import DataError, HangError, exit_code_of
from mpp.shards.shardset import ShardSet, open_shards, place, read_members
from mpp.shards.verification import verify
from mpp.stream.batches import Batch
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.reader import ShardReader
from mpp.stream.views import ViewConfig

SIZE = (8, 8)
BATCH = 8
UNEVEN = (19, 1, 12, 7, 30, 3, 16)

Make = Callable[..., ShardSet]
Index = Callable[..., ShardSet]
Tars = Callable[..., Path]


def open_stream(
    shards: ShardSet, stream: Mapping[str, Any] | None = None, batch: int = BATCH, **settings: Any
) -> TrainStream:
    world = settings.get("world", 1)
    rest = {"seed": 5, "micro_batch": batch // world} | settings
    config = resolve(StreamConfig, {"workers": 0} | dict(stream or {}))
    return TrainStream(shards, ViewConfig(), SIZE, global_batch=batch, **rest, settings=config)


def epochs(shards: ShardSet, count: int = 1, **settings: Any) -> list[Batch]:
    stream = open_stream(shards, **settings)
    try:
        return list(itertools.islice(stream, count * stream.steps_per_epoch))
    finally:
        stream.close()


def ranks_epochs(shards: ShardSet, stream: Mapping[str, Any], world: int = 2, count: int = 1) -> list[list[Batch]]:
    """Read epochs of all ranks in turn, each with its own workers, and return their batches."""
    ranks = [open_stream(shards, stream, rank=rank, world=world) for rank in range(world)]
    try:
        steps = list(itertools.islice(zip(*ranks, strict=True), count * ranks[0].steps_per_epoch))
    finally:
        for one in ranks:
            one.close()
    return [list(batches) for batches in zip(*steps, strict=True)]


def together(ranks: list[list[Batch]], name: str) -> torch.Tensor:
    """Return what all ranks read, in the order of the global batches."""
    parts = torch.stack([torch.stack([getattr(batch, name) for batch in batches]) for batches in ranks], dim=2)
    return parts.flatten(0, 2)


def check_same(ranks: list[list[Batch]], alone: list[Batch]) -> None:
    for name in ("ids", "labels", "epochs", "images"):
        assert torch.equal(together(ranks, name), together([alone], name)), name


# Workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_it_with_3_within_a_second(uneven: ShardSet, workers: int) -> None:
    stream = open_stream(uneven, {"workers": workers})
    next(stream)
    multiprocessing.active_children()[0].kill()
    began = time.monotonic()
    with pytest.raises(DataError, match="a data worker is lost: ") as caught:
        list(itertools.islice(stream, 100))
    assert time.monotonic() - began < 3, "about one second, and two more for a busy machine"
    assert caught.value.exit_code == 3 and multiprocessing.active_children() == []


def test_a_stopped_worker_ends_it_with_6_and_names_the_shard(uneven: ShardSet) -> None:
    epochs(uneven, stream={"workers": 1})  # starts the fork server, which may take longer than the patience below
    stream = open_stream(uneven, {"workers": 2, "timeout": 8})
    next(stream)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(HangError, match="no batch within 8 seconds: a data worker is stuck on samples") as caught:
        list(itertools.islice(stream, 100))
    assert 8 <= time.monotonic() - began < 14
    message = str(caught.value)
    expected = next(batch for step, batch in enumerate(epochs(uneven, 2)) if str(batch.ids[:4].tolist()) in message)
    reader = ShardReader(uneven)
    named = {reader.shard_of(sample_id) for sample_id in expected.ids.tolist()}
    assert any(name in message for name in named)
    assert all(shard.name in named for shard in uneven.shards if shard.name in message)
    assert caught.value.exit_code == 6 and multiprocessing.active_children() == []


# Shards


@pytest.mark.parametrize("cut", ["at a member", "in a payload", "in a header"])
@pytest.mark.parametrize("others", [True, False])
def test_a_cut_shard_is_found_before_the_first_step_and_says_what_is_left(
    tmp_path: Path, make_set: Make, make_tars: Tars, index: Index, cut: str, others: bool
) -> None:
    shards = (
        index(make_tars(tmp_path / "tars", (5, 20)), tmp_path / "index")
        if others
        else make_set(tmp_path, "folders", images=20, shard_samples=20)
    )
    number = int(np.argmax([shard.samples for shard in shards.shards]))
    record = shards.shards[number]
    first = read_members(shards, number)["offset"][4].min() - 512
    size = int(first) + {"at a member": 0, "in a payload": 512 + 100, "in a header": 100}[cut]
    tar = Path(place(shards.root, record.name))
    tar.chmod(0o644)
    os.truncate(tar, size)
    with pytest.raises(DataError, match=rf"{record.name}: 4 of 20 samples, {size} of {record.bytes} bytes") as caught:
        open_shards(shards.root, "train")
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=rf"{record.name}: {size} of {record.bytes} bytes, it is not the shard"):
        epochs(shards)  # one that was cut after it was opened


def test_a_tail_of_zeros_is_never_trained_on(tmp_path: Path, make_tars: Tars, index: Index) -> None:
    shards = index(make_tars(tmp_path / "tars", (20, 20)), tmp_path / "index")
    tar, table = Path(shards.shards[1].name), read_members(shards, 1)
    begin = int(table["offset"][16, shards.shards[1].members.index("jpg")]) + 100
    with tar.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(tar.stat().st_size - begin))
    assert [problem for problem in verify(Path(shards.root), True).problems if "001.tar" in problem]
    with pytest.raises(DataError, match=r"001\.tar: the last member is damaged") as caught:
        open_shards(shards.root, "train")
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=r"001\.tar:1[6-9]( \(key .*\))?: the (jpg|cls) member is damaged: CRC"):
        epochs(shards)  # opened before it happened
    replaced = epochs(shards, 2, stream={"max_bad_fraction": 0.2})
    assert not {36, 37, 38, 39} & set(torch.cat([batch.ids for batch in replaced]).tolist())


@pytest.mark.parametrize("kind", ["jpg", "cls"])
def test_a_flipped_bit_in_a_payload_is_found_where_it_is_read(
    tmp_path: Path, make_tars: Tars, index: Index, flip: Callable[..., None], kind: str
) -> None:
    shards = index(make_tars(tmp_path / "tars", (8, 8)), tmp_path / "index")
    flip(shards, 1, 5, kind)
    expected = rf"001\.tar:5 \(key 0013\): the {kind} member is damaged: CRC \w{{8}}, expected \d+ bytes with CRC"
    with pytest.raises(DataError, match=expected) as caught:
        epochs(shards)
    assert caught.value.exit_code == 3
    assert any("sample 5 (key 0013)" in problem for problem in verify(Path(shards.root), True).problems)


def test_a_flipped_bit_in_a_header_changes_no_sample_and_is_found_by_verify(tmp_path: Path, make_set: Make) -> None:
    shards = make_set(tmp_path, "folders", images=16)
    before, tar = epochs(shards), Path(shards.root, shards.shards[0].name)
    raw = bytearray(tar.read_bytes())
    raw[int(read_members(shards, 0)["offset"][3, 0]) - 512 + 124] ^= 1  # its size
    tar.chmod(0o644)
    tar.write_bytes(raw)
    check_same([epochs(open_shards(shards.root, "train"))], before)
    assert verify(Path(shards.root), True).problems == ("train/train-000000.tar: sha256 differs from its record",)


@pytest.mark.parametrize("fault", ["empty", "missing", "folder"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_shard_that_is_not_there_is_named_before_and_after_opening(
    tmp_path: Path, make_set: Make, fault: str, when: str
) -> None:
    shards = make_set(tmp_path, "none")
    tar = Path(shards.root, shards.shards[2].name)
    tar.unlink()
    if fault == "empty":
        tar.touch()
    elif fault == "folder":
        tar.mkdir()
    expected = "No such file" if fault == "missing" else rf"\d+ of {shards.shards[2].bytes} bytes"
    with pytest.raises(DataError, match=rf"train-000002\.tar: ([01] of 10 samples, )?{expected}") as caught:
        open_shards(shards.root, "train") if when == "before" else epochs(shards)
    assert caught.value.exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_shard_that_may_not_be_read_is_named(tmp_path: Path, make_set: Make) -> None:
    shards = make_set(tmp_path, "none")
    Path(shards.root, shards.shards[2].name).chmod(0)
    with pytest.raises(DataError, match=r"train-000002\.tar: Permission denied"):
        epochs(shards)


def test_a_shard_that_the_index_names_twice_is_refused(tmp_path: Path, make_set: Make) -> None:
    root = Path(make_set(tmp_path, "none").root)
    index = json.loads((root / "index.json").read_text())
    index["shardlist"].append(index["shardlist"][1])
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"train/train-000001\.tar: .*twice") as caught:
        open_shards(root, "train")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("how", ["in place", "renamed", "in place, shorter"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_replaced_between_epochs_is_never_mixed_in(
    tmp_path: Path, make_tars: Tars, index: Index, how: str, workers: int
) -> None:
    shards = index(make_tars(tmp_path / "tars", (16, 16)), tmp_path / "index")
    two_epochs = epochs(shards, 2)
    other = make_tars(tmp_path / "others", (16, 16), 100) / "001.tar"
    tar = Path(shards.shards[1].name)
    assert other.stat().st_size == tar.stat().st_size
    stream = open_stream(shards, {"workers": workers})
    seen = list(itertools.islice(stream, stream.steps_per_epoch))
    if how == "renamed":
        other.replace(tar)
    else:
        with tar.open("r+b") as file:
            file.write(other.read_bytes())
            file.truncate(tar.stat().st_size if how == "in place" else 3 * 512)
    if how == "renamed":  # who has the old one open still reads that
        seen += itertools.islice(stream, stream.steps_per_epoch)
        check_same([seen], two_epochs)
        stream.close()
        stream = open_stream(shards, {"workers": workers}, start_step=stream.steps_per_epoch)
    with pytest.raises(DataError, match=r"001\.tar:?.* (is damaged|it is not the shard)") as caught:
        for batch in itertools.islice(stream, 2 * stream.steps_per_epoch):
            seen.append(batch)
    stream.close()
    assert caught.value.exit_code == 3
    for batch, expected in zip(seen, two_epochs, strict=False):
        assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.images, expected.images)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 2), (4, 0)])
def test_fewer_shards_than_ranks_and_workers_give_equal_steps_and_each_sample_once(
    tmp_path: Path, make_tars: Tars, index: Index, world: int, workers: int
) -> None:
    shards = index(make_tars(tmp_path / "tars", (1, 19)), tmp_path / "index")
    ranks = [epochs(shards, 3, batch=4, stream={"workers": workers}, rank=rank, world=world) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {15}
    ids = together(ranks, "ids").reshape(3, 20)
    assert all(sorted(row) == list(range(20)) for row in ids.tolist())
    assert len({tuple(row) for row in ids.tolist()}) == 3


# Epochs of several ranks, and servers


@pytest.fixture
def served(faulty_server: FaultyServer, make_tars: Tars, index: Index, tmp_path: Path) -> ShardSet:
    """The 7 uneven shards of others behind a server, which is well until now."""
    make_tars(faulty_server.folder / "tars", UNEVEN)
    return index(f"{faulty_server.url('tars')}/{{000..006}}.tar", tmp_path / "remote index")


FAULTS = {
    "tars/000.tar": ["503", "503"],
    "tars/001.tar": ["cut"],
    "tars/002.tar": ["short", "long"],
    "tars/003.tar": ["less", "more", "500"],
    "tars/004.tar": ["503", "cut", "short"],
    "tars/005.tar": ["other"],
    "tars/006.tar": ["429", "short"],
}


def check_epoch(ranks: list[list[Batch]], samples: int, count: int = 1) -> None:
    """Check that ranks have equally many batches and read each sample once at most in an epoch."""
    steps = samples // BATCH
    assert {len(batches) for batches in ranks} == {count * steps}
    ids = together(ranks, "ids").reshape(count, steps * BATCH)
    for row in ids.tolist():
        assert len(set(row)) == len(row) and set(row) <= set(range(samples))


def test_an_epoch_over_two_ranks_with_two_workers_each_reads_each_sample_once(uneven: ShardSet) -> None:
    ranks = ranks_epochs(uneven, {"workers": 2}, count=2)
    check_epoch(ranks, sum(UNEVEN), count=2)
    check_same(ranks, epochs(uneven, 2))
    reader, labels = ShardReader(uneven), together(ranks, "labels")
    assert labels.tolist() == reader.labels()[together(ranks, "ids")].tolist()


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_over_a_server_that_fails_is_that_of_the_disk(
    uneven: ShardSet, served: ShardSet, faulty_server: FaultyServer, tmp_path: Path, cache_gb: float, workers: int
) -> None:
    assert served.fingerprint == uneven.fingerprint
    for pattern, faults in FAULTS.items():
        faulty_server.add_faults(pattern, faults)
    stream = {"workers": workers, "cache": str(tmp_path / "cache"), "cache_gb": cache_gb}
    ranks = ranks_epochs(served, stream)
    check_epoch(ranks, sum(UNEVEN))
    check_same(ranks, epochs(uneven))
    met = [request.fault for request in faulty_server.requests if request.fault]
    if cache_gb:  # what is still being fetched when the epoch ends is given up
        assert len(met) >= 8
    else:
        assert len(met) == sum(map(len, FAULTS.values())), "every fault was met"


def test_once_the_node_has_all_shards_the_server_is_not_asked_again(
    uneven: ShardSet, served: ShardSet, faulty_server: FaultyServer, tmp_path: Path
) -> None:
    faulty_server.add_faults("*.tar", ["503", "cut", "short"])
    settings = {"cache": str(tmp_path / "cache"), "cache_gb": 1.0}
    stream = open_stream(served, settings)
    begun = list(itertools.islice(stream, stream.steps_per_epoch))
    deadline = time.monotonic() + 20
    while len(list((tmp_path / "cache/shards").glob("?" * 64))) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    stream.clock.lap(1.0)
    faulty_server.add_faults("*", ALWAYS("404"))
    asked = faulty_server.asked()
    begun += itertools.islice(stream, stream.steps_per_epoch)
    _, counts = stream.clock.lap(1.0)
    stream.close()
    check_same([begun], epochs(uneven, 2))
    assert counts["cache_misses"] == 0 < counts["cache_hits"] and faulty_server.asked() == asked
    check_same(ranks_epochs(served, settings), epochs(uneven))


def test_retries_and_ranged_reads_are_counted_by_the_clock(served: ShardSet, faulty_server: FaultyServer) -> None:
    for pattern, faults in FAULTS.items():
        faulty_server.add_faults(pattern, faults)
    stream = open_stream(served, {"cache_gb": 0.0})
    asked = faulty_server.asked()
    list(itertools.islice(stream, stream.steps_per_epoch))
    _, counts = stream.clock.lap(1.0)
    assert counts["retries"] == sum(map(len, FAULTS.values()))
    assert counts["cache_misses"] == faulty_server.asked() - asked - counts["retries"]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "status 404.*there is nothing to see here"),
        ("503", "status 503"),
        ("html", "please log in"),
        ("page", "DOCTYPE"),
        ("total", r"a file of \d+ bytes instead of \d+"),
        ("stall", "10 bytes|stall|TimeoutError"),
    ],
)
def test_what_a_server_never_gives_ends_it_with_3_the_address_the_status_and_first_bytes(
    make_set: Make,
    faulty_server: FaultyServer,
    tmp_path: Path,
    fault: str,
    said: str,
    cache_gb: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_set(faulty_server.folder, "folders")
    served = replace(
        open_shards(faulty_server.url("set"), "train"), root=faulty_server.url("set", user="me:sesame")
    )  # such a root is refused; were it not, it would not be shown
    faulty_server.add_faults("*/train-000002.tar", ALWAYS(fault))
    stream = {"cache": str(tmp_path / "cache"), "cache_gb": cache_gb}

    def command(_: Any) -> None:
        epochs(served, 2, stream=stream)

    assert exit_code_of(command, []) == 3
    message = capsys.readouterr().err
    assert "error: " in message and "fix: " in message and "sesame" not in message
    assert f"http://127.0.0.1:{faulty_server.server_port}/set/train/train-000002.tar: " in message
    assert re.search(said, message)


PROGRAM = """
import itertools, json, sys
import torch, zlib
from mpp.config import resolve
from mpp.shards.shardset import open_shards
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.views import ViewConfig
root, rank, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
stream = TrainStream(
    open_shards(root, "train"), ViewConfig(), (8, 8), seed=5, global_batch=8, micro_batch=4, rank=rank, world=2,
    settings=resolve(StreamConfig, settings),
)
batches = itertools.islice(stream, stream.steps_per_epoch)
seen = [[batch.ids.tolist(), [zlib.crc32(image.numpy()) for image in batch.images.contiguous()]] for batch in batches]
print(json.dumps(seen))
stream.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_two_processes_with_two_workers_each_share_a_server_that_fails_and_a_cache(
    uneven: ShardSet, served: ShardSet, faulty_server: FaultyServer, tmp_path: Path, cache_gb: float
) -> None:
    for pattern, faults in FAULTS.items():
        faulty_server.add_faults(pattern, faults[:2])
    settings = json.dumps({"workers": 2, "cache": str(tmp_path / "cache"), "cache_gb": cache_gb})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, "-c", PROGRAM, served.root, str(rank), settings] for rank in range(2)]
    ranks = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    steps = sum(UNEVEN) // BATCH
    assert [len(batches) for batches in said] == [steps, steps]
    expected = [[batch.ids.tolist(), [zlib.crc32(image.numpy()) for image in batch.images]] for batch in epochs(uneven)]
    for step in range(steps):
        for part in range(2):
            both = [value for pair in zip(said[0][step][part], said[1][step][part], strict=True) for value in pair]
            assert both == expected[step][part]
