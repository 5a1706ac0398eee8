"""The tables hold every figure of the comparison, each in the row of its arm and labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpp.evaluation.verdict import ArmFacts, Comparison
from mpp.report import sheets
from mpp.report.sheets import Sheet
from mpp.report.trainings import Ending

Compared = Callable[..., Comparison]


def cells(sheet: Sheet, *labels_and_arm: str) -> dict[str, str]:
    """Return the one row that begins so, by column."""
    (row,) = (row for row in sheet.rows if row[: len(labels_and_arm)] == labels_and_arm)
    assert len(row) == len(sheet.header) == len(set(sheet.header))
    return dict(zip(sheet.header, row, strict=True))


@pytest.fixture
def comparison(compared: Compared) -> Comparison:
    return compared(
        {5: {"masked": [50.0, 54.0], "scratch": [40.0, 42.0]}, None: {"masked": [80.0, 81.0], "scratch": [85.0, 85.5]}}
    )


def test_results_are_means_intervals_differences_and_the_accuracy_of_every_seed(comparison: Comparison) -> None:
    assert cells(sheets.results(comparison), "5", "masked") == {
        "labels": "5",
        "arm": "masked",
        "top-1 accuracy, %": "52.00 [26.59, 77.41]",
        "against scratch": "+11.00 [-1.71, +23.71]",
        "p": "0.058",
        "p Holm": "0.067",
        "by seed (0, 1)": "50.00 54.00",
        "rate": "0.003",
        "trials": "8",
    }
    reference = cells(sheets.results(comparison), "5", "scratch")
    assert (reference["against scratch"], reference["p"], reference["p Holm"]) == ("", "", "")


def test_a_terminal_has_all_operations_in_one_number(comparison: Comparison) -> None:
    row = cells(sheets.short_results(comparison), "5", "masked")
    assert (row["seeds"], row["FLOPs"]) == ("2", "2.98e15")
    unknown = replace(comparison, rows=(replace(comparison.rows[0], pretraining=None),))
    assert cells(sheets.short_results(unknown), "5", "masked")["FLOPs"] == "?"


def test_costs_are_by_stage(comparison: Comparison) -> None:
    row = cells(sheets.costs(comparison), "all", "masked")
    assert list(row.values())[2:] == [
        *("153,600", "2.90e15", "1,834", "102,400", "6.10e14", "412", "12,800", "7.70e13", "51")
    ]
    assert list(row)[2:5] == ["pretraining, images", "pretraining, FLOPs", "pretraining, seconds"]


def test_an_ablation_has_the_masked_arms_by_what_is_their_own(compared: Compared) -> None:
    values = {"masked": [50.0, 54.0], "masked-b": [60.0, 61.0], "masked-c": [1.0, 2.0], "scratch": [40.0, 42.0]}
    comparison = compared({20: values, 5: values, None: {"masked": [70.0, 70.0], "scratch": [60.0, 60.0]}})
    words = ("mean_color of 50 %, 1,200 steps", "pixels of 75 %, 1,200 steps", "1,200 steps", "no pretraining")
    arms = tuple(replace(arm, words=said) for arm, said in zip(comparison.arms, words, strict=True))
    sheet = sheets.ablation(replace(comparison, arms=arms))
    assert sheet is not None
    assert sheet.header[2:] == ("5 labels per class", "20 labels per class", "all labels per class")
    assert [row[:2] for row in sheet.rows] == [
        ("masked", "mean_color of 50 %"),
        ("masked-b", "pixels of 75 %"),
        ("masked-c", "nothing"),
    ]
    assert sheet.rows[0][2:] == (*["52.00 (+11.00 [-1.71, +23.71])"] * 2, "70.00 (+10.00)")
    assert sheet.rows[1][4] == ""


def test_one_masked_arm_is_no_ablation(comparison: Comparison) -> None:
    assert sheets.ablation(comparison) is None


def test_the_end_of_pretraining_stands_beside_what_needs_no_learning() -> None:
    sheet = sheets.pretraining_ends([Ending("masked", "pixels", 1200, 0.25, 56.34, {"majority_accuracy": 0.4267})])
    assert sheet is not None
    row = cells(sheet, "masked")
    assert (row["step"], row["loss"], row["accuracy, %"], row["majority, %"]) == ("1,200", "0.25", "56.34", "42.67")
    assert row["uniform loss"] == ""
    assert sheets.pretraining_ends([]) is None


def test_arms_data_and_environment_are_listed(comparison: Comparison) -> None:
    outside = ArmFacts("timm", "backbone", "from outside", None, (Path("a"),))
    arms = sheets.arms(replace(comparison, arms=(*comparison.arms, outside)))
    assert arms.rows[0] == ("masked", "masked", "masked in words, 1,200 steps", "1,234,567", "0")
    assert arms.rows[2] == ("timm", "backbone", "from outside", "?", "1")
    data = cells(sheets.data(comparison), "pretraining")
    assert (data["images"], data["refused"], data["classes"], data["fingerprint"]) == ("3,312", "17", "37", "ab" * 32)
    bare = sheets.data(replace(comparison, data=(replace(comparison.data[0], classes=None),)))
    assert bare.rows[0][-1] == "none"
    assert sheets.environment({"python": "3", "gpus": [], "packages": {"torch": "2"}}).rows == (
        ("python", "3"),
        ("gpus", "none"),
        ("packages.torch", "2"),
    )
