"""Pictures and curves by matplotlib: reconstructions, training curves, accuracy against the number of labels.

The extension of the path chooses the format, ``.png`` or ``.svg``. Colours are those of Okabe and Ito, which people
with any colour vision can tell apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mpp.evaluation.comparison import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)))
CELL = 1.3  # inches, longer side of an image in the grid
DODGE = 0.12  # sideways distance of arms, as a share of the distance between label counts


def reconstruction_picture(originals: Tensor, corrupted: Tensor, predicted: Tensor, path: Path) -> None:
    """Write a grid of images, one a column: original, corrupted, predicted. All are uint8 [n, 3, H, W], n > 0."""
    count, _, height, width = originals.shape
    cell = CELL / max(height, width)
    figure = _figure(1.05 + count * width * cell, 0.15 + 3 * height * cell)
    grid = figure.subplots(3, count, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for title, images, row in zip(
        ("original", "corrupted", "predicted"), (originals, corrupted, predicted), grid, strict=True
    ):
        for image, axes in zip(images, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation="horizontal", ha="right", va="center")
    _save(figure, path)


def training_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], baselines: Mapping[str, float], path: Path
) -> None:
    """Write loss and accuracy against the step, one curve a run, with the trivial baselines as dashed lines.

    ``runs`` are lines of ``metrics.jsonl`` by name; a baseline belongs to the panel that its name ends with,
    ``..._loss`` (nats, or squared error for pixels) or ``..._accuracy`` as a fraction.
    """
    figure = _figure(10, 4.2)
    for axes, quantity, up, scale in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("loss", "accuracy, %"), (1, 100), strict=True
    ):
        for (name, lines), color in zip(runs.items(), _cycle(COLORS, len(runs)), strict=True):
            points = [(line["step"], scale * line[quantity]) for line in lines if quantity in line]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, label=name)
        flat = {name: value for name, value in baselines.items() if name.endswith(f"_{quantity}")}
        for (name, value), dash in zip(flat.items(), _cycle(DASHES, len(flat)), strict=True):
            label = name.removesuffix(f"_{quantity}").replace("_", " ")
            axes.axhline(scale * value, color="#666666", linestyle=dash, linewidth=1.2, label=f"{label} (no learning)")
        _finish(axes, "step", up)
    _save(figure, path)


def label_curve(rows: Sequence[Row], path: Path) -> None:
    """Write top-1 accuracy against labels per class, one curve an arm, with 95 % intervals where there are seeds."""
    counts = sorted({row.labels_per_class for row in rows}, key=lambda count: float("inf") if count is None else count)
    arms = list(dict.fromkeys(row.arm for row in rows))
    figure = _figure(5.6, 4.2)
    axes = figure.subplots()
    for number, (arm, color) in enumerate(zip(arms, _cycle(COLORS, len(arms)), strict=True)):
        own = sorted((row for row in rows if row.arm == arm), key=lambda row: counts.index(row.labels_per_class))
        places = [counts.index(row.labels_per_class) + DODGE * (number - (len(arms) - 1) / 2) for row in own]
        means = [row.top1.mean for row in own]
        axes.plot(places, means, color=color, marker=MARKERS[number % len(MARKERS)], linewidth=1.8, label=arm)
        for place, top1 in zip(places, (row.top1 for row in own), strict=True):
            if top1.low is not None and top1.high is not None:
                axes.plot([place, place], [top1.low, top1.high], color=color, linewidth=1.2, marker="_", markersize=7)
    axes.set_xticks(range(len(counts)), ["all" if count is None else f"{count:,}" for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low), min(100, high))  # intervals of few seeds pass the possible
    _finish(axes, "labelled images per class", "top-1 accuracy, % (95 % interval)")
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    """Return a figure of this size in inches, drawn without a display or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set(xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0, 1))  # on no curve


def _save(figure: "Figure", path: Path) -> None:
    """Write the figure; equal figures give equal bytes."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "mpp"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _cycle(values: Sequence[Any], count: int) -> list[Any]:
    return [values[number % len(values)] for number in range(count)]
