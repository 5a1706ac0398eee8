"""Pictures and curves by matplotlib: reconstructions, training curves, accuracy against the number of labels.

The extension of the path chooses the format, ``.png`` or ``.svg``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from mpp.evaluation.verdict import Row
from mpp.report.drawing import (
    DASHES,
    GRAY,
    HEIGHT,
    WHITE,
    WIDTH,
    cycle,
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 1.3  # inches, longer side of an image in the grid
DODGE = 0.09  # sideways distance of arms, as a share of the distance between label counts
MOST_POINTS = 800  # of a chart of training curves

Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl


class Panel(NamedTuple):
    """Training curves that may be held against each other: ``runs`` by arm, and what is reached without learning."""

    title: str
    runs: Mapping[str, Sequence[Lines]]
    baselines: Mapping[str, float]


def reconstruction_picture(originals: Tensor, corrupted: Tensor, predicted: Tensor, path: Path) -> None:
    """Write a grid of images, one a column: original, corrupted, predicted. All are uint8 [n, 3, H, W], n > 0."""
    count, _, height, width = originals.shape
    cell = CELL / max(height, width)
    figure = new_figure(1.05 + count * width * cell, 0.15 + 3 * height * cell)
    grid = figure.subplots(3, count, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for title, images, row in zip(
        ("original", "corrupted", "predicted"), (originals, corrupted, predicted), grid, strict=True
    ):
        for image, axes in zip(images, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation="horizontal", ha="right", va="center")
    save(figure, path)


def training_curves(panels: Sequence[Panel], arms: Sequence[str], path: Path) -> None:
    """Write loss and accuracy against the step, two charts a panel, one curve a run, with trivial baselines dashed.

    ``arms`` are all of the comparison: they give the colours. A baseline belongs to the chart that its name ends with,
    ``..._loss`` (nats, or squared error for pixels) or ``..._accuracy`` as a fraction.
    """
    names = max(([*panel.runs, *panel.baselines] for panel in panels), key=len)
    figure = new_figure(2 * WIDTH, len(panels) * (HEIGHT + 0.1 * len(names)))
    for panel, row in zip(panels, figure.subplots(len(panels), 2, squeeze=False), strict=True):
        most = MOST_POINTS // sum(map(len, panel.runs.values())) + 2
        for axes, quantity, up, scale in zip(row, ("loss", "accuracy"), ("loss", "accuracy, %"), (1, 100), strict=True):
            for arm, runs in panel.runs.items():
                line = {"color": look_of(arms, arm)[0], "linestyle": "--" if is_hollow(arms, arm) else "-"}
                _draw_runs(axes, arm, line, runs, quantity, scale, most)
            flat = {name: value for name, value in panel.baselines.items() if name.endswith(f"_{quantity}")}
            for (name, value), dash in zip(flat.items(), cycle(DASHES, len(flat)), strict=True):
                label = f"{name.removesuffix(f'_{quantity}').replace('_', ' ')} (no learning)"
                axes.axhline(scale * value, color=GRAY, linestyle=dash, linewidth=1.2, label=label)
            finish(axes, "step", f"{legible(panel.title)}: {up}")
    save(figure, path)


def label_curve(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Write accuracy against labels per class, one curve an arm, with 95 % intervals where there are seeds."""
    counts = label_counts(rows)
    arms = list(dict.fromkeys(row.arm for row in rows))
    figure = new_figure(WIDTH, HEIGHT, arms)
    axes = figure.subplots()
    for number, arm in enumerate(arms):
        color, marker = look_of(arms, arm)
        own = sorted((row for row in rows if row.arm == arm), key=lambda row: counts.index(row.labels_per_class))
        places = [counts.index(row.labels_per_class) + DODGE * (number - (len(arms) - 1) / 2) for row in own]
        means = [row.top1.mean for row in own]
        look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "-"}
        if is_hollow(arms, arm):
            look |= {"markerfacecolor": WHITE, "linestyle": "--"}
        axes.plot(places, means, markersize=5, linewidth=1.5, label=legible(arm), **look)
        for place, row in zip(places, own, strict=True):
            draw_interval(axes, place, row, color)
    axes.set_xticks(range(len(counts)), [show_labels(count) for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    keep_possible(axes)
    finish(axes, "labelled images per class", f"{metric}, % (95 % interval)")
    save(figure, path)


def label_counts(rows: Sequence[Row]) -> list[int | None]:
    """Return the numbers of labels per class, few first and all last."""
    return sorted({row.labels_per_class for row in rows}, key=lambda count: float("inf") if count is None else count)


def _draw_runs(
    axes: "Axes", arm: str, line: Mapping[str, Any], runs: Sequence[Lines], quantity: str, scale: float, most: int
) -> None:
    """Draw the runs of an arm by lines of its look, named once."""
    label: str | None = legible(arm)
    for lines in runs:
        points = list(_points(lines, quantity, scale, most))
        if points:
            axes.plot(*zip(*points, strict=True), linewidth=1.5, label=label, **line)
            label = None


def _points(lines: Lines, quantity: str, scale: float, most: int) -> Iterator[tuple[int, float]]:
    """Yield (step, value), every n-th and the last, so that a long run is drawn by few of its lines."""
    own = [line for line in lines if quantity in line]
    every = -(-len(own) // most)
    for place, line in enumerate(own):
        if place % every == 0 or place == len(own) - 1:
            yield line["step"], scale * line[quantity]
