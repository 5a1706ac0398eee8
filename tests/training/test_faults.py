"""Whole runs over faults of a cluster: killed, stopped and signalled processes, no numbers, no memory, other counts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_runs import ROOT, ForkedRuns, Ranks, wait_until

from mpp.training.checkpoint import complete_checkpoints
from mpp.training.runs import read_metrics

pytestmark = pytest.mark.slow

Start = Callable[..., Ranks]


@pytest.fixture(scope="module")
def runs() -> Iterator[ForkedRuns]:
    """The process that runs are forked from."""
    with ForkedRuns() as runs:
        yield runs


@pytest.fixture(scope="module")
def config(tiny_vit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of 12 steps with a checkpoint every 5."""
    tree = {"vit": {**tiny_vit, "drop_path": 0.1}, "steps": 12, "global_batch": 16, "log_every": 1, "save_every": 5}
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps({**tree, "stream": {"workers": 0}}))
    return file


@pytest.fixture
def start(runs: ForkedRuns, config: Path, tiny_shards: Path, tmp_path: Path) -> Start:
    """Return a function that starts ``mpp pretrain`` into tmp_path/NAME; ``faults`` are those of the ranks."""

    def begin(*words: str, name: str = "run", ranks: int = 2, **faults: str) -> Ranks:
        given = ["--config", str(config), f"shards={tiny_shards}", f"out={tmp_path / name}", *words]
        by_rank = {int(rank.removeprefix("rank")): fault for rank, fault in faults.items()}
        return runs.start(given, tmp_path / "log", ranks=ranks, faults=by_rank)

    return begin


def logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saved(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete_checkpoints(run / "checkpoints")]


# Lost and stuck processes


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_other_ends_with_6_and_names_it(
    runs: ForkedRuns, start: Start, tmp_path: Path, killed: int
) -> None:
    run = start("steps=5000")
    wait_until(lambda: logged(tmp_path / "run") >= 3)
    os.kill(run.pids[killed], signal.SIGKILL)
    codes = runs.codes(run)
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 6
    assert f"error: process {killed} (host " in run.output(1 - killed)
    assert f"pid {run.pids[killed]}) is lost" in run.output(1 - killed)
    assert "Traceback" not in run.output(1 - killed)
    if killed == 1:
        assert (tmp_path / "run" / "STATUS").read_text() == "failed\n"


@pytest.mark.parametrize("stopped", [0, 1])
def test_where_one_process_is_stopped_the_other_ends_with_6_and_stacks(
    runs: ForkedRuns, start: Start, tmp_path: Path, stopped: int
) -> None:
    run = start("steps=5000", "timeouts.step=4")
    wait_until(lambda: logged(tmp_path / "run") >= 3)
    os.kill(run.pids[stopped], signal.SIGSTOP)
    began = time.monotonic()
    wait_until(lambda: "error: " in run.output(1 - stopped))
    assert time.monotonic() - began < 60  # of at least 4; a lone machine says it within 6
    os.kill(run.pids[stopped], signal.SIGKILL)
    assert runs.codes(run)[1 - stopped] == 6
    said = run.output(1 - stopped)
    assert f"stacks of process {1 - stopped}" in said and "loop.py" in said
    assert f"error: process {1 - stopped} of 2 at step " in said and ", samples [" in said


def test_no_memory_on_one_process_ends_with_8_and_the_other_says_why(
    runs: ForkedRuns, start: Start, tmp_path: Path
) -> None:
    run = start(rank1="raise-oom@step:3")
    assert runs.codes(run) == [6, 8]
    assert "out of memory at step 3 with micro_batch 8" in run.output(1)
    assert "micro_batch=4 keeps the global batch; the same command then continues from the beginning" in run.output(1)
    assert "error: process 1" in run.output(0) and "out of memory at step 3" in run.output(0)
    # what was advised goes on, here from a checkpoint
    again = start("save_every=2", name="other", rank0="raise-oom@step:7", rank1="raise-oom@step:7")
    assert runs.codes(again) == [8, 8] or sorted(runs.codes(again)) == [6, 8]
    assert "step-000000006" in again.output(0) + again.output(1)
    assert runs.codes(start("save_every=2", "micro_batch=4", name="other")) == [0, 0]


# Stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_saves_all_at_one_step_between_log_lines(
    runs: ForkedRuns, start: Start, tmp_path: Path, number: signal.Signals, asked: int
) -> None:
    run = start("steps=100000", "log_every=50", "save_every=100000")
    wait_until(lambda: logged(tmp_path / "run") >= 1)
    os.kill(run.pids[asked], number)
    assert runs.codes(run) == [143, 143]
    newest = saved(tmp_path / "run")[0]
    assert newest >= 50
    for rank in (0, 1):
        assert f"saved at step {newest}" in run.output(rank)
    assert "stopped by a signal" in (tmp_path / "run" / "STATUS").read_text()


def test_a_second_signal_ends_at_once(runs: ForkedRuns, start: Start, tmp_path: Path) -> None:
    run = start("steps=100000", ranks=1)
    wait_until(lambda: logged(tmp_path / "run") >= 2)
    # Both are there when it goes on, in either order; a stop in good order ends with 143.
    for number in (signal.SIGSTOP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        os.kill(run.pids[0], number)
    assert runs.codes(run)[0] in (128 + signal.SIGUSR1, 128 + signal.SIGUSR2)


@pytest.mark.parametrize(("ranks", "place"), [(1, "baselines"), (2, "baselines"), (1, "step:1"), (2, "step:1")])
def test_a_signal_during_the_evaluation_or_the_first_step_stops_all(
    runs: ForkedRuns, start: Start, tmp_path: Path, ranks: int, place: str
) -> None:
    run = start(ranks=ranks, rank0=f"term@{place}")
    assert runs.codes(run) == [143] * ranks
    if place == "baselines":
        assert "nothing to save yet" in run.output(0)
        assert not (tmp_path / "run" / "baselines.json").exists()
    else:
        assert saved(tmp_path / "run")[0] in (1, 2)
    assert runs.codes(start(ranks=ranks)) == [0] * ranks


def session(number: int) -> list[int]:
    """List the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("file", ["cpu_2_processes.yaml", "one_gpu.yaml"])
def test_sigterm_to_the_launcher_alone_saves_and_leaves_no_process(
    config: Path, tiny_shards: Path, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate" / file)]
    words = ["--config", str(config), f"shards={tiny_shards}", f"out={out}", "steps=100000", "save_every=100000"]
    launch += ["--cpu"] if "gpu" in file else []
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [sys.executable, *launch, str(ROOT / "mpp" / "pretrain.py"), *words],
            start_new_session=True, stdout=log, stderr=log, cwd=ROOT,
        )  # fmt: skip
    wait_until(lambda: logged(out) >= 3)
    os.kill(launcher.pid, signal.SIGTERM)
    launcher.wait()
    wait_until(lambda: not session(launcher.pid))
    assert saved(out), (tmp_path / "log").read_text()
    assert "stopped by a signal" in (out / "STATUS").read_text()


# Numbers that are none


def test_one_process_without_a_finite_loss_makes_all_skip_the_step(
    runs: ForkedRuns, start: Start, tmp_path: Path
) -> None:
    assert runs.codes(start(rank1="nan@loss:3")) == [0, 0]
    metrics = read_metrics(tmp_path / "run")
    assert [line.get("skipped") for line in metrics] == [None, None, 1] + [None] * 9
    assert all(("loss" in line) == (line["step"] != 3) for line in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_three_in_a_row_end_all_with_5_a_finite_checkpoint_and_what_to_replay(
    runs: ForkedRuns, start: Start, tmp_path: Path
) -> None:
    run = start(rank1="nan@loss:7,nan@loss:8,nan@gradient:9")
    assert runs.codes(run) == [5, 5]
    assert saved(tmp_path / "run")[0] == 9
    facts = [json.loads(path.read_text()) for path in sorted((tmp_path / "run").glob("replay-*.json"))]
    assert [fact["step"] for fact in facts] == [7, 8, 9]
    assert [len(ids) for ids in facts[0]["ids"]] == [8, 8]
    assert runs.codes(start()) == [0, 0]  # it goes on where the data is good again


# Other numbers of processes, and kills


def test_a_number_of_processes_that_does_not_divide_is_refused_by_all(runs: ForkedRuns, start: Start) -> None:
    run = start(ranks=3)
    assert runs.codes(run) == [2, 2, 2]
    assert "use 1, 2, 4, 8, 16" in run.output(0)


@pytest.mark.parametrize("micro_batch", ["null", "8"])
def test_from_two_processes_to_one_and_back_the_losses_stay_the_same(
    runs: ForkedRuns, start: Start, tmp_path: Path, micro_batch: str
) -> None:
    same = ["vit.drop_path=0", f"micro_batch={micro_batch}"]  # stochastic depth differs by process
    assert runs.codes(start(*same, name="whole")) == [0, 0]
    for ranks, step in ((2, 4), (1, 8)):
        run = start(*same, name="moved", ranks=ranks, **{f"rank{rank}": f"term@step:{step}" for rank in range(ranks)})
        assert runs.codes(run) == [143] * ranks
    assert runs.codes(start(*same, name="moved")) == [0, 0]
    here, there = ([line["loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "moved"))
    assert here == pytest.approx(there, rel=1e-6)
    if micro_batch == "8":  # the micro-batches are the same ones then, and a sum of two has one order
        assert here == there
        whole, moved = ((tmp_path / name / "backbone.safetensors").read_bytes() for name in ("whole", "moved"))
        assert whole == moved


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_and_continued_are_the_undisturbed_run(
    config: Path, tiny_shards: Path, tmp_path: Path, processes: int
) -> None:
    words = ["--kills", "6", "--seed", "3", "--processes", str(processes), "--", "--config", str(config)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_resume.py"), str(tmp_path), *words, f"shards={tiny_shards}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with 6 kills are bit-identical" in done.stdout
