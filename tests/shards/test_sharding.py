"""A run can be killed, continued, repeated and spread over processes without changing a byte."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from mpp.errors import ConfigError, DataError
from mpp.shards.engines import Ray, Slurm
from mpp.shards.options import FinalizeOptions, PlanOptions, RunOptions, ShardOptions
from mpp.shards.sharding import finalize_shards, plan_shards, run_shards, shard_corpus
from mpp.shards.shardset import open_shards
from mpp.shards.verification import verify

Corpus = Callable[..., Path]


def files(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of a set."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def images(count: int) -> list[str]:
    return [f"{'ab'[number % 2]}/{number}.jpg" for number in range(count)]


def test_processes_give_the_bytes_of_one(corpus: Corpus, tmp_path: Path) -> None:
    source = str(corpus(*images(30)))
    for name, workers in (("one", 0), ("two", 2)):
        shard_corpus(ShardOptions(source=source, out=str(tmp_path / name), shard_samples=7, workers=workers))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert open_shards(tmp_path / "one", "train").samples == 30


@pytest.mark.slow
def test_killed_twenty_times_and_continued_the_bytes_are_the_same(corpus: Corpus, tmp_path: Path) -> None:
    source, out = corpus(*images(600)), tmp_path / "out"
    (source / "a/bad.jpg").write_bytes(b"no image")
    command = [sys.executable, "-m", "mpp.shard", str(source), str(out), "shard_samples=10", "workers=2"]
    random, kills = np.random.default_rng(0), 0
    for attempt in range(200):
        if kills == 20:
            break
        if (out / "index.json").exists():  # this machine was faster: from the beginning
            assert verify(out, full=True).problems == (), "there is an index of a set that is not whole"
            shutil.rmtree(out)
        done = len(list(out.glob(".mpp/train/*.json")))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            # one half anywhere, from its start on; the other half in the middle of writing shards
            until = time.monotonic() + (60 if attempt % 2 else random.uniform(0, 1.5))
            while process.poll() is None and time.monotonic() < until:
                if len(list(out.glob(".mpp/train/*.json"))) > done and attempt % 2:
                    break
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.02))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 20
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, check=False).returncode == 0
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "whole"), shard_samples=10, workers=0))
    assert files(out) == files(tmp_path / "whole")


def test_a_run_repeated_rewrites_only_what_is_missing_or_cut(corpus: Corpus, tmp_path: Path) -> None:
    options = ShardOptions(source=str(corpus(*images(20))), out=str(tmp_path / "out"), shard_samples=5, workers=0)
    shard_corpus(options)
    before = files(Path(options.out))
    times = {path: path.stat().st_mtime_ns for path in Path(options.out).glob("train/*.tar")}
    cut, gone = Path(options.out) / "train/train-000001.tar", Path(options.out) / "train/train-000003.tar"
    table = Path(options.out) / ".mpp/train/train-000002.members"
    os.truncate(cut, 5120)
    os.truncate(table, table.stat().st_size - 16)
    gone.unlink()
    shard_corpus(options)
    assert files(Path(options.out)) == before
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {
        cut,
        Path(options.out) / "train/train-000002.tar",
        gone,
    }


def test_other_options_or_images_are_refused_naming_the_difference(corpus: Corpus, tmp_path: Path) -> None:
    source, out = corpus(*images(6)), tmp_path / "out"
    shard_corpus(ShardOptions(source=str(source), out=str(out), workers=0))
    before = files(out)
    with pytest.raises(ConfigError, match="quality: 95 there, 90 now; seed: 0 there, 1 now"):
        shard_corpus(ShardOptions(source=str(source), out=str(out), workers=0, quality=90, seed=1))
    (source / "a/new.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"images: \{'train': 6\} there, \{'train': 7\} now"):
        shard_corpus(ShardOptions(source=str(source), out=str(out), workers=0))
    assert files(out) == before


def test_refused_images_are_counted_listed_and_limited(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = corpus(*images(8))
    (source / "a/empty.jpg").write_bytes(b"")
    (source / "b/page.png").write_bytes(b"<html>")
    options = ShardOptions(source=str(source), out=str(tmp_path / "out"), workers=0)
    with pytest.raises(DataError, match="2 of 10 images were refused"):
        shard_corpus(options)
    table = pyarrow.parquet.read_table(tmp_path / "out/.mpp/refused.parquet")
    assert table.column_names == ["source", "reason", "detail", "sha256"]
    rows = {row["source"]: row for row in table.to_pylist()}
    assert {name: row["reason"] for name, row in rows.items()} == {"a/empty.jpg": "empty", "b/page.png": "not_image"}
    assert rows["b/page.png"]["sha256"] == hashlib.sha256(b"<html>").hexdigest()
    assert open_shards(options.out, "train").samples == 8
    assert verify(Path(options.out), full=True).problems == ()
    lines = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {("listed", "10"), ("taken", "8"), ("passed", "8"), ("refused", "2"), ("empty", "1")} <= lines
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "out"), workers=0, max_refused=0.2))


def test_a_shard_and_a_set_without_any_good_image_break_nothing(corpus: Corpus, tmp_path: Path) -> None:
    source = corpus(*images(3))
    for number in range(3):
        (source / f"a/{number}.png").write_bytes(b"no")
    options = ShardOptions(source=str(source), out=str(tmp_path / "out"), shard_samples=1, workers=0, max_refused=1.0)
    shard_corpus(options)
    assert open_shards(options.out, "train").samples == len(open_shards(options.out, "train").shards) == 3
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.png").write_bytes(b"no")
    with pytest.raises(DataError, match="1 of 1 images were refused"):
        shard_corpus(ShardOptions(source=str(bad), out=str(tmp_path / "none"), workers=0))
    with pytest.raises(DataError, match="no split 'train', it has none"):
        open_shards(tmp_path / "none", "train")


def test_the_stored_format_follows_the_source(corpus: Corpus, tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    from PIL import Image

    source = tmp_path / "png"
    source.mkdir()
    Image.new("L", (9, 9), 77).save(source / "1.png")
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "a"), workers=0))
    assert open_shards(tmp_path / "a", "train").shards[0].members == ("png", "json")
    (source / "2.png").write_bytes(jpeg(0))  # a JPEG by content
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "b"), workers=0))
    assert open_shards(tmp_path / "b", "train").shards[0].members == ("jpg", "json")


def test_output_folders_that_cannot_be_used_are_refused_untouched(corpus: Corpus, tmp_path: Path) -> None:
    source = corpus(*images(2))
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    before = files(tmp_path)
    for out, message in (("source/out", "one inside the other"), ("file", "is a file"), ("full", "is not empty")):
        with pytest.raises(ConfigError, match=message):
            shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / out), workers=0))
    assert files(tmp_path) == before


def test_a_second_run_in_the_same_folder_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    options = ShardOptions(source=str(corpus(*images(2))), out=str(tmp_path / "out"), workers=0)
    shard_corpus(options)
    with open(Path(options.out) / ".mpp/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another mpp-shard is writing"):
            shard_corpus(options)
    shard_corpus(options)


def test_the_layout_file_names_the_options_and_no_secret_path(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard_corpus(ShardOptions(source=str(corpus(*images(2))), out=str(out), workers=0))
    layout = json.loads((out / ".mpp/layout.json").read_text())
    assert layout["options"]["quality"] == 95 and layout["images"] == {"train": 2}
    assert str(tmp_path) not in "".join(path.read_text() for path in out.rglob("*.json"))


def test_the_parts_of_a_cluster_give_the_bytes_of_one_command(corpus: Corpus, tmp_path: Path) -> None:
    source = str(corpus(*images(30)))
    shard_corpus(ShardOptions(source=source, out=str(tmp_path / "whole"), shard_samples=7, workers=0))
    out = str(tmp_path / "parts")
    plan_shards(ShardOptions(source=source, out=out, shard_samples=7))
    for part in ("2/3", "0/3", "2/3"):
        run_shards(RunOptions(out=out, task=part, workers=0))
    with pytest.raises(DataError, match=r"2 shards are not written: train/train-000001\.tar, train/train-000002\.tar"):
        finalize_shards(FinalizeOptions(out=out))
    assert not (tmp_path / "parts/index.json").exists()
    run_shards(RunOptions(out=out, task="1/3", workers=0))
    finalize_shards(FinalizeOptions(out=out))
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    with pytest.raises(ConfigError, match="the parts of 3 are 0 to 2"):
        run_shards(RunOptions(out=out, task="3/3"))


def test_a_store_that_fsspec_knows_gets_the_bytes_of_a_folder(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(corpus(*images(12)))
    (tmp_path / "source/a/bad.jpg").write_bytes(b"<html>")
    monkeypatch.chdir(tmp_path)
    options = {"source": source, "shard_samples": 5, "max_refused": 1}
    shard_corpus(ShardOptions(out=str(tmp_path / "folder"), workers=0, **options))
    url = f"file://{tmp_path}/store"
    shard_corpus(ShardOptions(out=url, workers=2, **options))
    assert files(tmp_path / "store") == {
        name: digest for name, digest in files(tmp_path / "folder").items() if name != ".mpp/lock"
    }
    assert not list(tmp_path.glob("store-*.work/train")), "no shard stays on the local disk"
    (tmp_path / "store/train/train-000001.tar").unlink()
    shard_corpus(ShardOptions(out=url, workers=0, **options))
    assert verify(tmp_path / "store", full=True).problems == ()
    with pytest.raises(ConfigError, match="quality: 95 there, 90 now"):
        shard_corpus(ShardOptions(out=url, workers=0, work=tmp_path / "elsewhere", quality=90, **options))


def test_copies_are_dropped_and_counted_and_do_not_count_as_bad(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = corpus(*(f"train/{number}.jpg" for number in range(6)), *(f"test/{number}.jpg" for number in (7, 8)))
    (source / "train/copy.jpg").write_bytes((source / "train/1.jpg").read_bytes())
    (source / "train/leak.jpg").write_bytes((source / "test/7.jpg").read_bytes())
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "out"), dedupe="exact", workers=0))
    rows = pyarrow.parquet.read_table(tmp_path / "out/.mpp/refused.parquet").to_pylist()
    assert {row["source"]: row["detail"] for row in rows} == {
        "train/copy.jpg": "the same bytes as train: train/1.jpg",
        "train/leak.jpg": "the same bytes as test: test/7.jpg",
    }
    assert {row["reason"] for row in rows} == {"duplicate"}
    assert "duplicate" in capsys.readouterr().out
    assert open_shards(tmp_path / "out", "train").samples == 6


def test_files_that_vanish_or_change_after_the_listing_are_refused_by_that_name(
    corpus: Corpus, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    source, out = corpus(*images(4)), str(tmp_path / "out")
    plan_shards(ShardOptions(source=str(source), out=out))
    (source / "a/0.jpg").unlink()
    (source / "b/1.jpg").write_bytes(jpeg(1) + b"more")
    run_shards(RunOptions(out=out, workers=0))
    finalize_shards(FinalizeOptions(out=out, max_refused=1))
    rows = pyarrow.parquet.read_table(tmp_path / "out/.mpp/refused.parquet").to_pylist()
    assert {row["source"]: row["reason"] for row in rows} == {"a/0.jpg": "unreadable", "b/1.jpg": "changed"}
    assert open_shards(out, "train").samples == 2


class Killer(threading.Thread):
    """Sends ``number`` to the first process that is seen building a shard; its temporary file names it."""

    def __init__(self, out: Path, number: signal.Signals) -> None:
        super().__init__(daemon=True)
        self.out, self.number, self.killed = out, number, False

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while not self.killed and time.monotonic() < deadline:
            for path in self.out.glob(".mpp/tmp/*.tar.*"):
                with suppress(ProcessLookupError):
                    os.kill(int(path.suffix[1:]), self.number)
                    self.killed = True
                    return
            time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number"),
    [
        (Slurm(cluster="local", tasks_per_job=3), signal.SIGKILL),
        (Slurm(cluster="local", tasks_per_job=3, cpus=2), signal.SIGUSR2),  # as SLURM announces a preemption
        (Ray(cpus=2), signal.SIGKILL),
    ],
    ids=["slurm-killed", "slurm-preempted", "ray-killed"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_clusters_that_lose_a_process_give_the_bytes_of_one_command(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Slurm | Ray, number: signal.Signals
) -> None:
    pytest.importorskip("submitit" if engine.kind == "slurm" else "ray")
    monkeypatch.chdir(tmp_path)
    source, out = str(corpus(*images(300))), tmp_path / "out"
    options = {"source": source, "shard_samples": 30, "resize": 16}
    shard_corpus(ShardOptions(out=str(tmp_path / "whole"), workers=0, **options))
    killer = Killer(out, number)
    killer.start()
    shard_corpus(ShardOptions(out="out", engine=engine, **options))
    killer.join()
    assert killer.killed
    assert files(out) == files(tmp_path / "whole")


def test_a_finished_set_with_a_missing_shard_says_what_writes_it_again(corpus: Corpus, tmp_path: Path) -> None:
    source, out = str(corpus(*images(6))), tmp_path / "out"
    shard_corpus(ShardOptions(source=source, out=str(out), shard_samples=2, workers=0))
    (out / "train/train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"was finished, but 1 shards are missing(.|\n)*plan"):
        run_shards(RunOptions(out=str(out), workers=0))
    shard_corpus(ShardOptions(source=source, out=str(out), shard_samples=2, workers=0))
    assert verify(out, full=True).problems == ()


def test_a_strange_tar_among_the_shards_is_named_for_others_would_read_it(corpus: Corpus, tmp_path: Path) -> None:
    options = ShardOptions(source=str(corpus(*images(6))), out=str(tmp_path / "out"), workers=0)
    shard_corpus(options)
    (tmp_path / "out/train/train-000009.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000009\.tar is no shard of this set"):
        shard_corpus(options)


def test_what_could_not_be_read_is_tried_again(corpus: Corpus, tmp_path: Path) -> None:
    source, out = corpus(*images(6)), tmp_path / "out"
    away = tmp_path / "away"
    (source / "a/0.jpg").rename(away)
    (source / "a/0.jpg").symlink_to(away)
    options = ShardOptions(source=str(source), out=str(out), shard_samples=2, workers=0, max_refused=1)
    plan_shards(PlanOptions(source=options.source, out=options.out, shard_samples=2, workers=0))
    away.rename(tmp_path / "elsewhere")
    run_shards(RunOptions(out=str(out), workers=0))
    finalize_shards(FinalizeOptions(out=str(out), max_refused=1))
    assert open_shards(out, "train").samples == 5
    run_shards(RunOptions(out=str(out), workers=0))  # of a finished set: there is nothing to try it with
    assert open_shards(out, "train").samples == 5
    (tmp_path / "elsewhere").rename(away)
    shard_corpus(options)
    assert open_shards(out, "train").samples == 6
    shard_corpus(ShardOptions(source=options.source, out=str(tmp_path / "whole"), shard_samples=2, workers=0))
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM]])
def test_a_run_that_is_stopped_ends_soon_with_143_and_is_continued(
    corpus: Corpus, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    source, out = str(corpus(*images(3000))), tmp_path / "out"
    command = [sys.executable, "-m", "mpp.shard", source, str(out), "shard_samples=50", "resize=8", "workers=2"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while not list(out.glob(".mpp/train/*.json")):
            time.sleep(0.01)
        for number in signals:
            os.killpg(run.pid, number)
            time.sleep(0.2)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 143 or (len(signals) == 2 and run.returncode != 0), errors
    assert "interrupted" in errors
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120, check=False).returncode == 0
    assert open_shards(out, "train").samples == 3000
