"""Pictures hold the pixels and curves the numbers that they were given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mpp.evaluation.verdict import Row
from mpp.report import plots
from mpp.report.plots import Panel


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def test_the_grid_shows_each_image_in_its_row_and_column(drawn: list[Figure], tmp_path: Path) -> None:
    images = torch.arange(3 * 2 * 3 * 4 * 6).to(torch.uint8).view(3, 2, 3, 4, 6)
    plots.reconstruction_picture(images[0], images[1], images[2], tmp_path / "grid.png")
    axes = drawn[0].axes
    shown = np.stack([np.asarray(one.images[0].get_array()) for one in axes])
    assert np.array_equal(shown, images.flatten(0, 1).permute(0, 2, 3, 1).numpy())
    assert [one.get_ylabel() for one in axes[::2]] == ["original", "corrupted", "predicted"]


def test_a_picture_is_written_with_the_colours_of_its_images(tmp_path: Path) -> None:
    colors = torch.tensor([[200, 30, 40], [20, 180, 60], [10, 20, 220]], dtype=torch.uint8)
    images = [color[None, :, None, None].expand(1, 3, 8, 8) for color in colors]
    path = tmp_path / "new" / "picture.png"
    plots.reconstruction_picture(images[0], images[1], images[2], path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for color, part in zip(colors.numpy(), np.array_split(pixels, 3), strict=True):
        assert (part == color).all(axis=-1).sum() > 10_000


def test_training_curves_show_every_run_in_the_colour_of_its_arm_and_the_baselines_of_their_chart(
    drawn: list[Figure], tmp_path: Path
) -> None:
    lines = [{"step": step, "loss": 6.0 - step, "accuracy": step / 10} for step in range(4)]
    baselines = {"uniform_loss": 6.24, "majority_accuracy": 0.05, "visible_mean_accuracy": 0.1}
    panels = [
        Panel("pixels", {"a": [lines, lines[:2]], "c": [lines[:2]]}, baselines),
        Panel("classes", {"b": [lines]}, {}),
    ]
    plots.training_curves(panels, ["a", "b", "c"], tmp_path / "curves.svg")
    loss, accuracy, other, _ = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 6], [1, 5], [2, 4], [3, 3]]
    assert accuracy.lines[1].get_xydata().tolist() == [[0, 0], [1, 10]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["a", "c", "uniform (no learning)"]
    assert [line.get_ydata()[0] for line in accuracy.lines[3:]] == [5, 10]
    colors = [line.get_color() for line in (*loss.lines[:3], other.lines[0])]
    assert colors[0] == colors[1] and len(set(colors)) == 3
    assert (loss.get_ylabel(), other.get_ylabel()) == ("pixels: loss", "classes: loss")


def test_a_long_run_is_drawn_by_few_points_with_its_first_and_last(
    drawn: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MOST_POINTS", 30)
    lines = [{"step": step, "loss": 1.0} for step in range(1, 1001)] + [{"step": 1001, "probe": 1.0}]
    plots.training_curves([Panel("pixels", {"a": [lines, lines]}, {})], ["a"], tmp_path / "curves.svg")
    steps = drawn[0].axes[0].lines[0].get_xdata()
    assert 15 <= len(steps) <= 19 and (steps[0], steps[-1]) == (1, 1000)


def test_label_curves_put_all_labels_last_and_draw_intervals_where_there_are_seeds(
    drawn: list[Figure], tmp_path: Path, result: Callable[..., Row]
) -> None:
    rows = [
        result("masked", None, [80.0]),
        result("masked", 10, [50.0, 54.0]),
        result("scratch", 10, [40.0]),
        result("scratch", 2, [20.0]),
    ]
    plots.label_curve(rows, "top-1 accuracy", tmp_path / "labels.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10", "all"]
    named = {line.get_label(): line.get_ydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert named == {"masked": [52.0, 80.0], "scratch": [20.0, 40.0]}
    intervals = [line.get_ydata().tolist() for line in axes.lines if line.get_label()[0] == "_"]
    assert intervals == [[rows[1].top1.low, rows[1].top1.high]]
    assert axes.get_ylabel() == "top-1 accuracy, % (95 % interval)"


def test_an_eighth_arm_is_not_drawn_as_the_first(
    drawn: list[Figure], tmp_path: Path, result: Callable[..., Row]
) -> None:
    arms = [f"arm{number}" for number in range(8)]
    plots.label_curve([result(arm, 5, [50.0]) for arm in arms], "top-1 accuracy", tmp_path / "labels.svg")
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    plots.training_curves([Panel("pixels", {arm: [lines] for arm in arms}, {})], arms, tmp_path / "curves.svg")
    labels, training = ([line for line in figure.axes[0].lines if line.get_label()[0] != "_"] for figure in drawn)
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in labels}
    assert len(looks) == 8 and len({(line.get_color(), line.get_linestyle()) for line in training}) == 8
