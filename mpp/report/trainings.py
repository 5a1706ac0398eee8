"""The pretraining runs of a comparison, as their folders tell: what they predict, curves, trivial baselines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mpp.errors import ConfigError
from mpp.evaluation.verdict import Comparison
from mpp.plain_yaml import read_yaml
from mpp.report.plots import Panel
from mpp.training.runs import read_metrics

# What is predicted, by the kind of target, and which of the figures without learning, all on mean colours, fit it.
_TARGETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "mean_color": ("mean colours", ("_loss", "_accuracy")),
    "pixels": ("pixels", ("_accuracy",)),
    "downsized": ("downsized colours", ()),
}
BASELINES = ("uniform_loss", "marginal_loss", "majority_accuracy", "visible_mean_accuracy", "interpolation_accuracy")


@dataclass(frozen=True)
class Training:
    """One run: ``predicts`` in words, its lines of metrics.jsonl, and the trivial baselines comparable with them."""

    arm: str
    run: Path
    predicts: str
    lines: tuple[Mapping[str, Any], ...]
    baselines: Mapping[str, float]


class Ending(NamedTuple):
    """The last logged figures of an arm, means over its runs; accuracies in percent, None where there is none."""

    arm: str
    predicts: str
    step: int
    loss: float | None
    accuracy: float | None
    baselines: Mapping[str, float]


def read_trainings(comparison: Comparison) -> tuple[list[Training], list[str]]:
    """Return the runs of all arms, and a note on each that cannot be read."""
    trainings, notes = [], []
    for arm in comparison.arms:
        for run in arm.runs:
            try:
                trainings.append(_read(arm.name, run))
            except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
                reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
                notes.append(f"{run.name} is not among the training curves: {reason.splitlines()[0]}")
    return trainings, notes


def panels(trainings: Sequence[Training]) -> list[Panel]:
    """Return the runs by what they predicted: losses of different targets are no more comparable than kilos and metres.

    Figures without learning are means over runs, which differ in the patches that are masked.
    """
    found = []
    for predicts in dict.fromkeys(training.predicts for training in trainings):
        own = [training for training in trainings if training.predicts == predicts]
        runs = {arm: [one.lines for one in own if one.arm == arm] for arm in dict.fromkeys(one.arm for one in own)}
        found.append(Panel(predicts, runs, _means([one.baselines for one in own])))
    return found


def endings(trainings: Sequence[Training]) -> list[Ending]:
    """Return how the runs of each arm ended."""
    found = []
    for arm in dict.fromkeys(training.arm for training in trainings):
        own = [training for training in trainings if training.arm == arm]
        last = [training.lines[-1] for training in own]
        means = _means([{name: float(line[name]) for name in ("loss", "accuracy") if name in line} for line in last])
        accuracy = None if "accuracy" not in means else 100 * means["accuracy"]
        step = max(int(line["step"]) for line in last)
        baselines = _means([training.baselines for training in own])
        found.append(Ending(arm, own[0].predicts, step, means.get("loss"), accuracy, baselines))
    return found


def _read(arm: str, run: Path) -> Training:
    task = read_yaml(run / "config.yaml")["task"]
    lines = tuple(line for line in read_metrics(run) if "loss" in line)  # others are of probes
    if not lines:
        raise ValueError("metrics.jsonl has no line")
    if task["kind"] == "classification":
        return Training(arm, run, "classes", lines, {})
    kind = task["target"]["kind"]
    predicts, ends = _TARGETS.get(kind, (kind, ()))
    if task["target"].get("normalise"):
        predicts, ends = f"normalised {predicts}", ()
    baselines = json.loads((run / "baselines.json").read_text()) if (run / "baselines.json").exists() else {}
    return Training(
        arm, run, predicts, lines, {name: value for name, value in baselines.items() if name.endswith(ends)}
    )


def _means(trees: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure that all of some trees have."""
    shared = [name for name in trees[0] if all(name in tree for tree in trees)]
    return {name: sum(tree[name] for tree in trees) / len(trees) for name in shared}
