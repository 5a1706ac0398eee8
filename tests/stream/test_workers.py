"""Data workers are deaf to signals, do not outlive the main process, and are missed when they are lost or stuck."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import DataError, HangError
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import Batch
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.views import ViewConfig


def open_stream(shards: ShardSet, batch: int = 8, **settings: Any) -> TrainStream:
    stream = resolve(StreamConfig, settings)
    return TrainStream(
        shards, ViewConfig(), (12, 16), seed=5, global_batch=batch, micro_batch=batch // 2, settings=stream
    )


def take(stream: TrainStream, count: int) -> list[Batch]:
    return list(islice(stream, count))


def test_signals_to_the_whole_group_leave_the_workers_at_work(shards: ShardSet) -> None:
    stream = open_stream(shards, workers=2)
    take(stream, 1)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    time.sleep(0.2)
    assert len(take(stream, 40)) == 40
    stream.close()


def test_a_killed_worker_is_an_error(shards: ShardSet) -> None:
    stream = open_stream(shards, workers=1, timeout=60)
    take(stream, 1)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    begin = time.monotonic()
    with pytest.raises(DataError, match="a data worker is lost"):
        take(stream, 40)
    assert time.monotonic() - begin < 15


def test_workers_do_not_outlive_a_killed_main_process(shards: ShardSet) -> None:
    program = (
        "import multiprocessing, pathlib, time\n"
        "from mpp.shards.shardset import open_shards\n"
        "from mpp.stream.loader import StreamConfig, TrainStream\n"
        "from mpp.stream.views import ViewConfig\n"
        f"shards = open_shards(pathlib.Path({str(shards.root)!r}), 'train')\n"
        "settings = StreamConfig(workers=1)\n"
        "stream = TrainStream(shards, ViewConfig(), (8, 8), seed=0, global_batch=8, micro_batch=8, settings=settings)\n"
        "next(stream)\n"
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as main:
        assert main.stdout is not None
        worker = int(main.stdout.readline())
        main.kill()
        main.wait()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_stuck_on_its_storage_is_an_error_and_ends(tmp_path: Path, make_set: Callable[..., ShardSet]) -> None:
    shards = make_set(tmp_path, "none", images=4)
    tar = Path(shards.root, shards.shards[0].name)
    tar.unlink()
    os.mkfifo(tar)  # opening it waits for a writer that never comes
    begin = time.monotonic()
    with pytest.raises(
        HangError, match=r"no batch within 2 seconds: .* stuck on samples .* of train/train-000000\.tar"
    ):
        take(open_stream(shards, 4, workers=1, timeout=2), 1)
    assert multiprocessing.active_children() == []
    assert time.monotonic() - begin < 20
