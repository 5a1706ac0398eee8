"""Runs are read as pretraining leaves them, and held only against figures of their own kind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpp.evaluation.verdict import Comparison
from mpp.report.trainings import endings, panels, read_trainings

BASELINES = {"uniform_loss": 6.25, "marginal_loss": 4.0, "majority_accuracy": 0.125, "interpolation_accuracy": 0.5}
LINES = [
    {"step": 1, "loss": 2.0, "accuracy": 0.5},
    {"step": 2, "probe/knn": 9.0},
    {"step": 3, "loss": 1.0, "accuracy": 0.75},
]
TARGETS = {"masked": "{kind: masked_patches, target: {kind: TARGET}}", "supervised": "{kind: classification}"}


def write_run(folder: Path, task: str, lines: list[dict[str, float]] = LINES, **baselines: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"task: {task}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if baselines:
        (folder / "baselines.json").write_text(json.dumps(baselines))
    return folder


@pytest.fixture
def trained(compared: Callable[..., Comparison], tmp_path: Path) -> Callable[[str], Comparison]:
    """Return a function that makes a comparison of two masked runs with this target and a supervised one."""

    def make(target: str) -> Comparison:
        values = [50.0, 51.0]
        comparison = compared({5: {"masked": values, "supervised": values, "scratch": values}})
        runs = {"scratch": ()}
        for arm, seeds in (("masked", (0, 1)), ("supervised", (0,))):
            task = TARGETS[arm].replace("TARGET", target)
            runs[arm] = tuple(write_run(tmp_path / f"{arm}-seed{seed}", task, **BASELINES) for seed in seeds)
        return replace(comparison, arms=tuple(replace(arm, runs=runs[arm.name]) for arm in comparison.arms))

    return make


@pytest.mark.parametrize(
    ("target", "predicts", "comparable"),
    [
        ("mean_color", "mean colours", set(BASELINES)),
        ("pixels", "pixels", {"majority_accuracy", "interpolation_accuracy"}),
        ("pixels, normalise: true", "normalised pixels", set()),
        ("downsized", "downsized colours", set()),
        ("new", "new", set()),
    ],
)
def test_runs_are_held_only_against_figures_of_their_own_kind(
    trained: Callable[[str], Comparison], target: str, predicts: str, comparable: set[str]
) -> None:
    trainings, notes = read_trainings(trained(target))
    assert notes == []
    drawn = panels(trainings)
    assert [panel.title for panel in drawn] == [predicts, "classes"]
    assert {arm: len(runs) for arm, runs in drawn[0].runs.items()} == {"masked": 2}
    assert (set(drawn[0].baselines), drawn[1].baselines) == (comparable, {})
    assert drawn[0].runs["masked"][0] == (LINES[0], LINES[2])


def test_runs_end_with_the_mean_of_their_last_lines(trained: Callable[[str], Comparison]) -> None:
    comparison = trained("mean_color")
    other = comparison.arms[0].runs[1]
    (other / "metrics.jsonl").write_text('{"step": 3, "loss": 2.0, "accuracy": 0.25}\n')
    (other / "baselines.json").write_text(json.dumps(BASELINES | {"majority_accuracy": 0.375}))
    masked, supervised = endings(read_trainings(comparison)[0])
    assert (masked.arm, masked.step, masked.loss, masked.accuracy) == ("masked", 3, 1.5, 50.0)
    assert masked.baselines["majority_accuracy"] == 0.25 and supervised.baselines == {}


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "no task"])
def test_a_run_that_cannot_be_read_is_noted_and_the_others_are_drawn(
    trained: Callable[[str], Comparison], damage: str
) -> None:
    comparison = trained("mean_color")
    bad = comparison.arms[0].runs[0]
    if damage == "missing":
        (bad / "metrics.jsonl").unlink()
    elif damage == "empty":
        (bad / "metrics.jsonl").write_text("")
    elif damage == "half":
        (bad / "metrics.jsonl").write_text('{"step": 1, "lo')
    else:
        (bad / "config.yaml").write_text("{}")
    trainings, notes = read_trainings(comparison)
    assert [training.run.name for training in trainings] == ["masked-seed1", "supervised-seed0"]
    assert len(notes) == 1 and notes[0].startswith("masked-seed0 is not among the training curves: ")
