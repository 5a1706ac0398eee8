"""The table says what the rows say, aligned, and the curves stand beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mpp.evaluation.comparison import Arm, Comparison, Row
from mpp.evaluation.statistics import Difference, Summary, paired_difference, summarise
from mpp.report import table
from mpp.report.table import markdown, write_report


def row(arm: Arm, labels: int | None, top1: Summary, difference: Difference | None = None) -> Row:
    return Row(arm, labels, top1, difference, 0.003, 0 if arm == "scratch" else 128_000, 5_000)


ROWS = (
    row("masked", 5, summarise([50.0, 54.0]), paired_difference([50.0, 54.0], [40.0, 42.0])),
    row("scratch", 5, summarise([40.0, 42.0])),
    row("masked", None, summarise([80.0]), paired_difference([80.0], [85.0])),
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_holds_means_intervals_differences_rates_and_budgets() -> None:
    lines = markdown(Comparison(ROWS, (), ())).splitlines()
    # t of one degree of freedom, 97.5 %: 12.706; half-widths 12.706 * sd / sqrt(2)
    assert cells(lines[2]) == [
        *(
            "5",
            "masked",
            "52.00 [26.59, 77.41]",
            "2",
            "+11.00 [-1.71, +23.71]",
            "0.058",
            "0.058",
            "0.003",
            "128,000 + 5,000",
        )
    ]
    assert cells(lines[3]) == ["5", "scratch", "41.00 [28.29, 53.71]", "2", "", "", "", "0.003", "0 + 5,000"]
    assert cells(lines[4])[:6] == ["all", "masked", "80.00", "1", "-5.00", ""]


def test_p_values_are_corrected_for_their_number() -> None:
    twice = (*ROWS[:2], row("masked", 20, summarise([60.0, 61.0]), paired_difference([60.0, 61.0], [50.0, 51.5])))
    lines = [cells(line) for line in markdown(Comparison(twice, (), ())).splitlines()]
    assert [(line[5], line[6]) for line in lines[2:5]] == [("0.058", "0.058"), ("", ""), ("0.016", "0.033")]


def test_the_columns_are_aligned_and_the_notes_follow_as_a_list() -> None:
    lines = markdown(Comparison(ROWS, ("one", "two"), ())).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5:] == ["", "* one", "* two"]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a masked and a supervised run, as pretraining leaves them."""
    folders = tmp_path / "masked-seed0", tmp_path / "supervised-seed0"
    for folder, task in zip(
        folders, ("{kind: masked_patches, target: {kind: mean_color}}", "{kind: classification}"), strict=True
    ):
        folder.mkdir()
        (folder / "config.yaml").write_text(f"task: {task}\n")
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "accuracy": 0.5}\n')
    (folders[0] / "baselines.json").write_text(json.dumps({"uniform_loss": 6.2, "majority_accuracy": 0.1}))
    return folders


def test_the_report_is_the_table_and_two_pictures(runs: tuple[Path, Path], tmp_path: Path) -> None:
    comparison = Comparison(ROWS, (), runs)
    assert write_report(comparison, str(tmp_path)) == markdown(comparison) == (tmp_path / "table.md").read_text()
    for name in ("label_curve.svg", "training_curves.svg"):
        assert (tmp_path / name).read_text().startswith("<?xml")


def test_without_pretraining_there_are_no_training_curves(tmp_path: Path) -> None:
    write_report(Comparison(ROWS[1:2], (), ()), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label_curve.svg", "table.md"]


@pytest.mark.parametrize(
    ("target", "shown"),
    [("mean_color", {"uniform_loss", "majority_accuracy"}), ("pixels", {"majority_accuracy"}), ("downsized", set())],
)
def test_runs_are_held_only_against_figures_of_their_own_kind(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, shown: set[str]
) -> None:
    drawn: list[tuple[dict[str, Any], dict[str, float]]] = []
    monkeypatch.setattr(table, "training_curves", lambda runs, baselines, path: drawn.append((runs, baselines)))
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("mean_color", target))
    write_report(Comparison(ROWS, (), runs), str(tmp_path))
    curves, baselines = drawn[0]
    assert list(curves) == ["masked-seed0 (masked patches)", "supervised-seed0 (classification)"]
    assert list(curves.values()) == [[{"step": 1, "loss": 2.0, "accuracy": 0.5}]] * 2
    assert set(baselines) == shown
