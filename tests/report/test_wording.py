"""The verdict says what intervals and corrected p values say, of gains and losses alike, and never more."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.evaluation.statistics import Difference, holm, paired_difference, summarise
from mpp.evaluation.verdict import ArmFacts, Comparison, Row
from mpp.report.wording import name_arm, name_metric, verdict

Compared = Callable[..., Comparison]


def decided(comparison: Comparison, *differences: Difference, p_holm: Sequence[float | None] = ()) -> Comparison:
    """Put differences, and corrected p values, into the rows of the masked arm."""
    found = iter(zip(differences, p_holm or [one.p for one in differences], strict=True))
    rows = []
    for row in comparison.rows:
        if row.arm == "masked":
            difference, p = next(found)
            row = replace(row, difference=difference, p_holm=p)
        rows.append(row)
    return replace(comparison, rows=tuple(rows))


@pytest.fixture
def two(compared: Compared) -> Comparison:
    """Masked and scratch with 50 labels and with all; one p for each."""
    arms = {"masked": [60.0, 61.0, 62.0], "scratch": [50.0, 52.0, 51.0]}
    return compared({50: arms, None: arms})


def test_a_gain_with_few_labels_and_nothing_with_all(two: Comparison) -> None:
    comparison = decided(
        two, Difference(6.7, 3.1, 10.2, 0.0015, 3), Difference(0.4, -1.2, 2.0, 0.5, 3), p_holm=[0.003, 0.5]
    )
    assert verdict(comparison).headline == (
        "With 50 labels per class masked pretraining gained 6.7 points of top-1 accuracy over scratch "
        "(95 % interval 3.1 to 10.2, p = 0.003 corrected for 2 comparisons, 3 seeds); "
        "with all labels no difference could be told (+0.4, -1.2 to 2.0, p = 0.5)."
    )
    assert verdict(comparison).beside == () and verdict(comparison).caveat == ""


def test_a_loss_is_said_as_plainly(two: Comparison) -> None:
    comparison = decided(two, Difference(-6.7, -10.2, -3.1, 0.0004, 3), Difference(-1.0, -1.2, -0.8, 0.001, 3))
    assert verdict(comparison).headline == (
        "With 50 labels per class masked pretraining lost 6.7 points of top-1 accuracy against scratch "
        "(95 % interval -10.2 to -3.1, p < 0.001 corrected for 2 comparisons, 3 seeds); "
        "with all labels it lost 1.0 point (-1.2 to -0.8, p = 0.001)."
    )


def test_an_interval_without_zero_is_no_claim_where_the_correction_forbids_it(two: Comparison) -> None:
    comparison = decided(two, Difference(5, 1, 9, 0.03, 3), Difference(0, -1, 1, 1.0, 3), p_holm=[0.06, 1.0])
    said = verdict(comparison).headline
    assert "no difference in top-1 accuracy between masked pretraining and scratch could be told once corrected" in said
    assert "gained" not in said and "(+5.0, 95 % interval 1.0 to 9.0, p = 0.06 corrected" in said


def test_one_seed_is_no_interval_and_no_claim(compared: Compared) -> None:
    said = verdict(compared({1: {"masked": [55.0], "scratch": [50.0]}, None: {"masked": [69.0], "scratch": [70.0]}}))
    assert said.headline == (
        "With 1 label per class masked pretraining had 5.0 points more top-1 accuracy than scratch in one seed, "
        "no interval: no claim; with all labels it had 1.0 point less."
    )


def test_one_comparison_is_not_corrected_and_the_metric_is_named(compared: Compared) -> None:
    comparison = compared({5: {"masked": [60.0, 61.0], "scratch": [50.0, 50.9]}}, metric="mean_per_class")
    said = verdict(comparison).headline
    assert "points of mean per-class accuracy over scratch (95 % interval" in said and "corrected" not in said
    assert name_metric("another") == "another"


def test_the_subject_is_the_first_masked_arm_and_other_kinds_stand_beside_it(compared: Compared) -> None:
    values = {"supervised": [70.0, 71.0], "masked-b": [60.0, 61.0], "masked-a": [90.0, 91.0], "scratch": [50.0, 51.5]}
    said = verdict(compared({5: values}))
    assert "the arm masked-b" in said.headline and "masked-a" not in said.headline
    assert len(said.beside) == 1 and "supervised pretraining" in said.beside[0]


def test_arms_are_named_by_their_kind_where_that_says_which(compared: Compared) -> None:
    top1 = [50.0, 51.0]
    names = ("masked", "masked-b", "supervised-resnet", "scratch", "backbone-x")
    comparison = compared({5: dict.fromkeys(names, top1)})
    assert [name_arm(comparison, name) for name in names] == [
        *("masked pretraining", "the arm masked-b", "supervised pretraining", "scratch", "the arm backbone-x")
    ]


def test_an_arm_alone_has_nothing_to_be_held_against(compared: Compared) -> None:
    said = verdict(compared({5: {"scratch": [50.0, 51.0]}}))
    assert said.headline == "One arm alone: there is nothing to hold it against." and said.beside == ()


def test_warnings_come_before_the_verdict(two: Comparison) -> None:
    assert verdict(replace(two, warnings=("leak",))).caveat == "Read with this warning:"
    assert verdict(replace(two, warnings=("leak", "trials"))).caveat == "Read with these 2 warnings:"


ACCURACIES = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(
        st.dictionaries(
            st.sampled_from(["masked", "supervised", "scratch"]),
            st.lists(st.floats(0, 100), min_size=seeds, max_size=seeds),
            min_size=3,
        ),
        min_size=1,
        max_size=3,
    )
)


def _as_comparison(by_labels: Sequence[Mapping[str, Sequence[float]]], like: Row) -> Comparison:
    """Return a comparison of accuracies by labels (1, 2, 3), arm and seed."""
    rows = []
    for labels, arms in enumerate(by_labels, start=1):
        for arm, top1 in arms.items():
            difference = None if arm == "scratch" else paired_difference(top1, arms["scratch"])
            facts: dict[str, Any] = {"arm": arm, "labels_per_class": labels, "top1": summarise(top1)}
            rows.append(replace(like, **facts, top1_by_seed=tuple(top1), difference=difference))
    tested = [place for place, row in enumerate(rows) if row.difference is not None and row.difference.p is not None]
    for place, p in zip(tested, holm([rows[at].difference.p or 0.0 for at in tested]), strict=True):
        rows[place] = replace(rows[place], p_holm=p)
    arms = tuple(ArmFacts(name, name, name, 1, ()) for name in ("masked", "supervised", "scratch"))
    seeds = tuple(range(rows[0].top1.n))
    return Comparison(tuple(rows), "scratch", arms, (), seeds, "top1", (), (), Path("."), {}, "", {})


@given(ACCURACIES)
def test_nothing_is_claimed_that_the_numbers_do_not_say(by_labels: list[dict[str, list[float]]]) -> None:
    like = Row("", None, summarise([0.0]), (), None, None, 0.1, 1, None, None, None)  # type: ignore[arg-type]
    comparison = _as_comparison(by_labels, like)
    said = verdict(comparison)
    for arm, sentence in (("masked", said.headline), ("supervised", said.beside[0])):
        rows = [row for row in comparison.rows if row.arm == arm]
        clauses = sentence.split("; ")
        assert len(clauses) == len(rows)
        for row, clause in zip(rows, clauses, strict=True):
            difference = row.difference
            assert difference is not None
            low, high = difference.low, difference.high
            sure = row.p_holm is not None and row.p_holm < 0.05
            assert ("gained" in clause) == bool(sure and low is not None and low > 0)
            assert ("lost" in clause) == bool(sure and high is not None and high < 0)
            assert (low is None) == ("no interval: no claim" in sentence)
            assert ("no difference" in clause) == (low is not None and "gained" not in clause and "lost" not in clause)
            if low is not None and high is not None:
                shown = re.search(r"(-?[\d.]+) to (-?[\d.]+)", clause)
                assert shown is not None
                assert [float(end) for end in shown.groups()] == pytest.approx([low, high], abs=0.051)
