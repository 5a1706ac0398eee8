"""Parts are done when their record is there, whoever ran them: here, side by side, or as jobs of a cluster."""

import json
from pathlib import Path
from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import DataError
from mpp.evaluation.parts import _seconds, read_record, run_parts
from mpp.evaluation.plan import CompareConfig, Part, Plan, make_plan

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
