"""Parts are done when their record is there, whoever ran them: here, side by side, or as jobs of a cluster."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import DataError
from mpp.evaluation.parts import _seconds, read_record, run_parts
from mpp.evaluation.plan import CompareConfig, Part, Plan, make_plan
from mpp.shards.engines import Slurm
from mpp.training.runs import read_metrics

FAST = {"steps": 2, "global_batch": 12, "stream": {"workers": 0}}


def plan_of(tiny_shards: Path, tiny_vit: dict[str, Any], out: Path, **changes: Any) -> Plan:
    tree = {
        "shards": str(tiny_shards),
        "out": str(out),
        "arms": ["masked", "scratch"],
        "seeds": [0],
        "pretrain": {"vit": tiny_vit, **FAST},
        "transfer": {**FAST, "learning_rates": [0.01, 0.02]},
    }
    return make_plan(resolve(CompareConfig, {**tree, **changes}))


def timeless(records: dict[Part, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records by name, without what the clock and the place decide."""
    return {
        part.name: {key: value for key, value in record.items() if key not in ("seconds", "origin")}
        for part, record in records.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"parallel": 2},
        {"engine": {"kind": "slurm", "cluster": "local", "tasks_per_job": 1, "memory_gb": 4.0}},
    ],
    ids=["side by side", "jobs"],
)
def test_parts_run_elsewhere_leave_the_records_of_those_run_here(
    tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    if "engine" in how:
        pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)  # logs of jobs
    here = run_parts(plan_of(tiny_shards, tiny_vit, tmp_path / "here"))
    elsewhere = run_parts(plan_of(tiny_shards, tiny_vit, tmp_path / "elsewhere", **how))
    assert timeless(elsewhere) == timeless(here)
    weights = [tmp_path / place / "pretrain/masked-seed0/backbone.safetensors" for place in ("here", "elsewhere")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def _below(process: int) -> Iterator[int]:
    """Yield the numbers of all processes that a process has started, at any depth."""
    for child in map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        yield child
        yield from _below(child)


@pytest.mark.slow
def test_a_pretraining_that_a_cluster_interrupts_saves_comes_back_and_ends(
    tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    engine = {"kind": "slurm", "cluster": "local", "tasks_per_job": 1, "memory_gb": 4.0}
    pretrain = {"vit": tiny_vit, **FAST, "steps": 400, "log_every": 1}
    plan = plan_of(tiny_shards, tiny_vit, tmp_path / "out", engine=engine, pretrain=pretrain)
    jobs: list[Any] = []
    submit = Slurm._submit

    def submitted(self: Slurm, chunks: Any) -> list[Any]:
        jobs.extend(submit(self, chunks))
        return jobs[-len(chunks) :]

    def interrupt() -> None:
        metrics = tmp_path / "out" / "pretrain" / "masked-seed0" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in _below(int(jobs[0].job_id)):  # as the cluster does; the local controller would not pass it on
            if b"submitit.core._submit" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGUSR2)

    monkeypatch.setattr(Slurm, "_submit", submitted)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    records = run_parts(plan)
    thread.join()
    assert records[Part("pretrain", "masked", None, 0)]["images_seen"] == 400 * 12
    run = tmp_path / "out" / "pretrain" / "masked-seed0"
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 401))
    assert "continuing from" in "".join(path.read_text() for path in (tmp_path / "slurm-logs").glob("*_log.out"))
    assert sum(job is not None for job in jobs) == 1 + 1 + 2 + 2  # the pretraining twice, two choices, two finals


def test_a_record_that_is_there_is_not_made_again_and_a_broken_one_is_named(
    tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(tiny_shards, tiny_vit, tmp_path / "out", arms=["scratch"])
    first = run_parts(plan)
    part = Part("final", "scratch", None, 0)
    path = tmp_path / "out" / "parts" / f"{part.name}.json"
    path.write_text(json.dumps({**first[part], "top1": -1.0}))
    assert run_parts(plan)[part]["top1"] == -1.0
    path.write_text('{"top1": 4')
    with pytest.raises(DataError, match=r"final-scratch-alllabels-seed0\.json is no record(.|\n)*fix: rm "):
        run_parts(plan)
    path.unlink()
    assert timeless(run_parts(plan)) == timeless(first)


def test_a_part_that_is_not_done_has_no_record(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(tiny_shards, tiny_vit, tmp_path / "out")
    assert read_record(plan, Part("pretrain", "masked", None, 0)) is None


def test_seconds_of_a_run_are_those_of_its_steps_however_often_it_was_cut_off() -> None:
    lines = [
        {"step": 10, "seconds_per_step": 0.5},
        {"step": 20, "seconds_per_step": 0.25},
        {"step": 20, "probe_seconds": 100.0},  # a line of something else
        {"step": 21, "seconds_per_step": 2.0},
    ]
    assert _seconds(lines) == pytest.approx(5 + 2.5 + 2)
