"""What is said to be equal is equal, and what is not is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from mpp.evaluation.verdict import Comparison, Cost
from mpp.report.equality import how_equal

VALUES = {"masked": [60.0, 61.0], "supervised": [62.0, 63.0], "scratch": [50.0, 51.5]}


@pytest.fixture
def comparison(compared: Callable[..., Comparison]) -> Comparison:
    return compared({5: VALUES, None: VALUES})


def changed(comparison: Comparison, arm: str, **changes: object) -> Comparison:
    rows = (replace(row, **changes) if row.arm == arm else row for row in comparison.rows)  # type: ignore[arg-type]
    return replace(comparison, rows=tuple(rows))


def test_an_equal_comparison_says_what_all_arms_share(comparison: Comparison) -> None:
    assert how_equal(comparison) == (
        "Fine-tuning with seeds 0, 1, the same for all arms, and differences are paired by seed.",
        "All 2 pretrained arms saw 153,600 images, views counted.",
        "Their pretraining took the same operations: 2.90e15 FLOPs.",
        "Without pretraining, and without its cost: scratch.",
        "Trials of the fine-tuning rate: 8 for every arm.",
        "Images of a fine-tuning: 12,800 for every arm.",
    )


def test_unequal_pretraining_is_named_by_arm(comparison: Comparison) -> None:
    said = how_equal(changed(comparison, "supervised", pretraining=Cost(76_800, 1.45e15, 1.0)))
    assert "Pretrained arms saw unequal numbers of images: masked 153,600, supervised 76,800." in said
    assert "Their pretraining took 1.45e15 to 2.90e15 FLOPs, 2.00 times as many." in said


def test_an_unknown_cost_is_not_called_equal(comparison: Comparison) -> None:
    said = how_equal(changed(comparison, "supervised", pretraining=None))
    assert "What pretraining cost is not known of supervised." in said
    assert not any(sentence.startswith("All") for sentence in said)


def test_trials_that_differ_are_named_for_each_number_of_labels(comparison: Comparison) -> None:
    said = how_equal(changed(comparison, "masked", trials=9))
    for labels in ("5", "all"):
        where = f"Trials of the fine-tuning rate are unequal with {labels} labels per class"
        assert f"{where}: masked 9, supervised 8, scratch 8." in said


def test_a_number_that_depends_on_labels_alone_is_equal_treatment(comparison: Comparison) -> None:
    rows = (replace(row, finetuning=Cost(100 if row.labels_per_class else 900, 1.0, 1.0)) for row in comparison.rows)
    said = how_equal(replace(comparison, rows=tuple(rows)))
    assert "Images of a fine-tuning, for every arm: 5 labels 100, all labels 900." in said


def test_one_seed_is_paired_with_nothing(compared: Callable[..., Comparison]) -> None:
    assert how_equal(compared({5: {"masked": [60.0], "scratch": [50.0]}}))[0] == (
        "Fine-tuning with seed 0, the same for all arms."
    )
