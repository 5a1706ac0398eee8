"""Accuracy against what it cost, as figure 5 of the ViT paper: one marker an arm and number of labels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpp.evaluation.verdict import Row
from mpp.report.drawing import (
    GRAY,
    HEIGHT,
    WHITE,
    WIDTH,
    draw_interval,
    finish,
    is_hollow,
    keep_possible,
    legible,
    look_of,
    new_figure,
    save,
)
from mpp.report.notation import show_labels
from mpp.report.plots import label_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEP = 0.03  # distance of arms of nearly one cost, as a share of the axis
_LEAST_RANGE = 0.7  # decades that the axis has at least
_APART = 0.055  # distance of the names of lines, as a share of the axis
_MOST_TICKS = 6


def total_flops(row: Row) -> float | None:
    """Return the operations of an arm's pretraining and one fine-tuning; None where nobody knows them."""
    return None if row.pretraining is None else row.pretraining.flops + row.finetuning.flops


def cost_accuracy(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Write the plot; thin lines join what was fine-tuned with the same number of labels.

    Rows whose pretraining cost nobody knows are left out.
    """
    known = [(row, math.log10(flops)) for row in rows if (flops := total_flops(row))]
    arms = list(dict.fromkeys(row.arm for row in rows))
    low, high = _range([decade for _, decade in known])
    offsets = _offsets(known, _STEP * (high - low))
    placed = [(row, 10 ** (decade + offsets[row.arm])) for row, decade in known]
    figure = new_figure(WIDTH, HEIGHT, list(offsets))
    axes = figure.subplots()
    for arm in (arm for arm in arms if arm in offsets):
        color, marker = look_of(arms, arm)
        own = [(row, place) for row, place in placed if row.arm == arm]
        for row, place in own:
            draw_interval(axes, place, row, color)
        means = [row.top1.mean for row, _ in own]
        face = WHITE if is_hollow(arms, arm) else color
        places = [place for _, place in own]
        axes.plot(places, means, marker, color=color, markerfacecolor=face, markersize=6, label=legible(arm))
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    ticks = _ticks(low, high)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    keep_possible(axes)
    _join(axes, placed)
    finish(axes, "FLOPs of pretraining and one fine-tuning", f"{metric}, % (95 % interval)")
    save(figure, path)


def _range(decades: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis in decades, with room at both sides."""
    low, high = min(decades, default=0.0), max(decades, default=0.0)
    room = max(0.12 * (high - low), (_LEAST_RANGE - (high - low)) / 2)
    return low - room, high + room


def _offsets(known: Sequence[tuple[Row, float]], step: float) -> dict[str, float]:
    """Return how far each arm is moved, in decades, so that arms of nearly one cost stand side by side."""
    decades = {row.arm: decade for row, decade in reversed(known)}
    ordered = sorted(reversed(decades), key=lambda arm: decades[arm])
    moved = _spread([decades[arm] for arm in ordered], step)
    return {arm: place - decades[arm] for arm, place in zip(ordered, moved, strict=True)}


def _ticks(low: float, high: float) -> dict[float, str]:
    """Return round numbers between 10**low and 10**high and how they are written: 1e15, 2e15, 5e15, or powers alone."""
    inside: dict[float, str] = {}
    for factors in ((1, 2, 5), (1,)):
        names = [f"{factor}e{power}" for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
        inside = {float(name): name for name in names if low <= math.log10(float(name)) <= high}
        if len(inside) <= _MOST_TICKS:
            break
    return inside


def _join(axes: "Axes", placed: Sequence[tuple[Row, float]]) -> None:
    """Join the means of one number of labels by a thin line and name it at the right end of the plot."""
    bottom, top = axes.get_ylim()
    edge = axes.get_xlim()[1]
    lines = []
    for count in label_counts([row for row, _ in placed]):
        points = sorted((place, row.top1.mean) for row, place in placed if row.labels_per_class == count)
        lines.append((points, f"{show_labels(count)} label{'s' * (count != 1)}"))
    lines.sort(key=lambda line: line[0][-1][1])
    heights = _spread([points[-1][1] for points, _ in lines], _APART * (top - bottom))
    for (points, name), height in zip(lines, heights, strict=True):
        axes.plot(
            *zip(*points, (edge, height), strict=True), color=GRAY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1
        )
        axes.annotate(
            name,
            (edge, height),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=GRAY,
            annotation_clip=False,
        )
    axes.set_ylim(bottom, top)


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """Move rising numbers ``apart``; those that are too near stand around the middle of what they were."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _ends(groups[-1], apart)[0] - _ends(groups[-2], apart)[1] < apart:
            last = groups.pop()
            groups[-1] += last
    return [_ends(group, apart)[0] + apart * place for group in groups for place in range(len(group))]


def _ends(group: Sequence[float], apart: float) -> tuple[float, float]:
    middle, reach = sum(group) / len(group), apart * (len(group) - 1) / 2
    return middle - reach, middle + reach
