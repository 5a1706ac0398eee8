"""A comparison on paper: the table in Markdown and, beside it, its curves and those of pretraining."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpp.evaluation.comparison import Comparison, Row
from mpp.evaluation.statistics import Difference, Summary, holm
from mpp.plain_yaml import read_yaml
from mpp.report.plots import label_curve, training_curves
from mpp.training.runs import read_metrics

TABLE, LABEL_CURVE, TRAINING_CURVES = "table.md", "label_curve.svg", "training_curves.svg"
# Figures without learning are on mean colours: of these targets they are comparable with ...
_COMPARABLE = {"mean_color": ("_loss", "_accuracy"), "pixels": ("_accuracy",)}
_HEADER = (
    "labels per class",
    "arm",
    "top-1 %, mean [95 %]",
    "seeds",
    "against scratch, points [95 %]",
    "p",
    "p of all, Holm",
    "rate",
    "images pretrained + fine-tuned",
)


def write_report(comparison: Comparison, out: str) -> str:
    """Write OUT/table.md, label_curve.svg and, where there was pretraining, training_curves.svg; return the table."""
    text, folder = markdown(comparison), Path(out)
    (folder / TABLE).write_text(text)
    label_curve(comparison.rows, folder / LABEL_CURVE)
    if comparison.runs:
        _draw_runs(comparison.runs, folder / TRAINING_CURVES)
    return text


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown table with its notes below; columns are aligned for a terminal.

    Each p value stands beside itself corrected for the number of differences in the table.
    """
    known = [row.difference.p for row in comparison.rows if row.difference is not None and row.difference.p is not None]
    corrected = iter(holm(known))
    rows = [_HEADER, *(_cells(row, corrected) for row in comparison.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *(f"* {note}" for note in comparison.notes)]).rstrip() + "\n"


def _cells(row: Row, corrected: Iterator[float]) -> tuple[str, ...]:
    p = None if row.difference is None else row.difference.p
    return (
        "all" if row.labels_per_class is None else str(row.labels_per_class),
        row.arm,
        _mean(row.top1),
        str(row.top1.n),
        "" if row.difference is None else _points(row.difference),
        "" if p is None else f"{p:.2g}",
        "" if p is None else f"{next(corrected):.2g}",
        f"{row.learning_rate:g}",
        f"{row.pretrain_images:,} + {row.finetune_images:,}",
    )


def _mean(summary: Summary) -> str:
    interval = "" if summary.low is None or summary.high is None else f" [{summary.low:.2f}, {summary.high:.2f}]"
    return f"{summary.mean:.2f}{interval}"


def _points(difference: Difference) -> str:
    interval = (
        "" if difference.low is None or difference.high is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    )
    return f"{difference.mean:+.2f}{interval}"


def _draw_runs(runs: Sequence[Path], path: Path) -> None:
    tasks = [read_yaml(run / "config.yaml")["task"] for run in runs]
    baselines: dict[str, float] = {}
    for run, task in zip(runs, tasks, strict=True):
        if (run / "baselines.json").exists():
            figures = json.loads((run / "baselines.json").read_text())
            ends = _COMPARABLE.get(task["target"]["kind"], ())
            baselines |= {name: value for name, value in figures.items() if name.endswith(ends)}
    names = [f"{run.name} ({task['kind'].replace('_', ' ')})" for run, task in zip(runs, tasks, strict=True)]
    training_curves({name: read_metrics(run) for name, run in zip(names, runs, strict=True)}, baselines, path)
