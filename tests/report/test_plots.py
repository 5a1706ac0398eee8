"""Pictures hold the pixels and curves the numbers that they were given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mpp.evaluation.comparison import Arm, Row
from mpp.evaluation.statistics import summarise
from mpp.report import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def row(arm: Arm, labels: int | None, *top1: float) -> Row:
    return Row(arm, labels, summarise(top1), None, 1e-3, 100, 100)


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


def test_training_curves_show_every_run_and_the_baselines_of_their_panel(drawn: list[Figure], tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 6.0 - step, "accuracy": step / 10} for step in range(4)]
    runs = {"one": lines, "other": lines[:2]}
    baselines = {"uniform_loss": 6.24, "majority_accuracy": 0.05, "visible_mean_accuracy": 0.1}
    plots.training_curves(runs, baselines, tmp_path / "curves.svg")
    loss, accuracy = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 6], [1, 5], [2, 4], [3, 3]]
    assert accuracy.lines[1].get_xydata().tolist() == [[0, 0], [1, 10]]
    assert [line.get_label() for line in loss.lines] == ["one", "other", "uniform (no learning)"]
    assert [line.get_ydata()[0] for line in accuracy.lines[2:]] == [5, 10]


def test_label_curves_put_all_labels_last_and_draw_intervals_where_there_are_seeds(
    drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [row("masked", None, 80.0), row("masked", 10, 50.0, 54.0), row("scratch", 10, 40.0), row("scratch", 2, 20.0)]
    plots.label_curve(rows, tmp_path / "labels.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10", "all"]
    named = {line.get_label(): line.get_ydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert named == {"masked": [52.0, 80.0], "scratch": [20.0, 40.0]}
    intervals = [line.get_ydata().tolist() for line in axes.lines if line.get_label()[0] == "_"]
    assert intervals == [[rows[1].top1.low, rows[1].top1.high]]


@pytest.mark.parametrize(("name", "start"), [("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_the_extension_chooses_the_format_and_equal_numbers_give_equal_pictures(
    tmp_path: Path, name: str, start: bytes
) -> None:
    files = [tmp_path / folder / name for folder in ("a", "b")]
    for file in files:
        plots.label_curve([row("masked", 1, 50.0)], file)
    assert files[0].read_bytes().startswith(start)
    assert files[0].read_bytes() == files[1].read_bytes()
