"""The plot of cost has every row at its cost and its accuracy, and no name over another."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mpp.evaluation.verdict import Cost, Row
from mpp.report import cost_plot
from mpp.report.cost_plot import cost_accuracy, total_flops


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(cost_plot, "save", lambda figure, path: figures.append(figure))
    return figures


@pytest.fixture
def rows(result: Callable[..., Row]) -> list[Row]:
    return [
        result(arm, labels, [base + number, base + number + 1.0])
        for labels, base in ((5, 30.0), (None, 60.0))
        for number, arm in enumerate(("scratch", "masked", "masked-b"))
    ]


def points(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    (axes,) = figure.axes
    named = [line for line in axes.lines if line.get_label()[0] != "_"]
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in named}


def test_each_row_is_a_marker_at_its_operations_and_accuracy(
    drawn: list[Figure], rows: list[Row], tmp_path: Path
) -> None:
    dear = [replace(row, pretraining=Cost(1, 9e16, 1.0)) if row.arm == "masked-b" else row for row in rows]
    cost_accuracy(dear, "top-1 accuracy", tmp_path / "cost.svg")
    found = points(drawn[0])
    assert found == {
        "scratch": [(pytest.approx(7.7e13), 30.5), (pytest.approx(7.7e13), 60.5)],
        "masked": [(pytest.approx(2.977e15), 31.5), (pytest.approx(2.977e15), 61.5)],
        "masked-b": [(pytest.approx(9.0077e16), 32.5), (pytest.approx(9.0077e16), 62.5)],
    }
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["5 labels", "all labels"]
    low, high = axes.get_xlim()
    assert all(low < place < high for line in found.values() for place, _ in line)
    assert {label.get_text() for label in axes.get_xticklabels()} >= {"1e14", "1e15", "1e16"}


def test_arms_of_one_cost_stand_side_by_side(drawn: list[Figure], rows: list[Row], tmp_path: Path) -> None:
    cost_accuracy(rows, "top-1 accuracy", tmp_path / "cost.svg")
    found = points(drawn[0])
    places = [found[arm][0][0] for arm in ("scratch", "masked", "masked-b")]
    assert places[0] == pytest.approx(7.7e13)
    assert places[1] < 2.977e15 < places[2] < 1.3 * places[1]


def test_a_row_of_unknown_cost_is_left_out(drawn: list[Figure], rows: list[Row], tmp_path: Path) -> None:
    unknown = [replace(row, pretraining=None) if row.arm == "masked" else row for row in rows]
    assert [total_flops(row) for row in unknown[:2]] == [7.7e13, None]
    cost_accuracy(unknown, "top-1 accuracy", tmp_path / "cost.svg")
    assert set(points(drawn[0])) == {"scratch", "masked-b"}


def test_one_arm_alone_has_an_axis(drawn: list[Figure], rows: list[Row], tmp_path: Path) -> None:
    cost_accuracy(rows[:1], "top-1 accuracy", tmp_path / "cost.svg")
    (axes,) = drawn[0].axes
    low, high = axes.get_xlim()
    assert low < 7.7e13 < high and len(axes.get_xticks()) >= 1


@given(st.lists(st.floats(0, 100), max_size=8).map(sorted), st.floats(0.5, 10))
def test_names_are_moved_apart_in_their_order_and_no_further_than_needed(heights: list[float], apart: float) -> None:
    moved = cost_plot._spread(heights, apart)
    assert len(moved) == len(heights)
    assert all(one >= other + apart - 1e-6 for other, one in itertools.pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights), abs=1e-6)
    if all(one >= other + apart for other, one in itertools.pairwise(heights)):
        assert moved == pytest.approx(heights)


@given(st.floats(3, 25), st.floats(0.7, 12))
def test_ticks_are_round_few_and_within_the_axis(low: float, width: float) -> None:
    ticks = cost_plot._ticks(low, low + width)
    assert 1 <= len(ticks) <= max(6, width + 1)
    assert all(float(shown) == tick and shown[0] in "125" for tick, shown in ticks.items())
    assert all(10**low * 0.999 <= tick <= 10 ** (low + width) * 1.001 for tick in ticks)


def test_an_eighth_arm_is_not_marked_as_the_first(
    drawn: list[Figure], result: Callable[..., Row], tmp_path: Path
) -> None:
    cost_accuracy([result(f"arm{number}", 5, [50.0]) for number in range(8)], "top-1 accuracy", tmp_path / "cost.svg")
    marked = [line for line in drawn[0].axes[0].lines if line.get_label().startswith("arm")]
    assert len({(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in marked}) == 8
