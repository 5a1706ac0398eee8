"""A comparison as tables: Markdown to read, JSON lines of every run beside it."""

from pathlib import Path

from mpp.evaluation.comparison import Comparison, Row
from mpp.evaluation.statistics import Difference, Summary

TABLE = "table.md"
_HEADER = (
    "labels per class",
    "arm",
    "top-1 %, mean [95 %]",
    "seeds",
    "against scratch, points [95 %]",
    "p",
    "rate",
    "images pretrained + fine-tuned",
)


def write_table(comparison: Comparison, out: str) -> str:
    """Write OUT/table.md and return its text."""
    text = markdown(comparison)
    (Path(out) / TABLE).write_text(text)
    return text


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown table with its notes below; columns are aligned for a terminal."""
    rows = [_HEADER, *(_cells(row) for row in comparison.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *(f"* {note}" for note in comparison.notes)]).rstrip() + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        "all" if row.labels_per_class is None else str(row.labels_per_class),
        row.arm,
        _mean(row.top1),
        str(row.top1.n),
        "" if row.difference is None else _points(row.difference),
        "" if row.difference is None or row.difference.p is None else f"{row.difference.p:.2g}",
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
