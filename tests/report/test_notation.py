"""Figures are written with the digits that they deserve, and never so that rounding claims more than they say."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.evaluation.statistics import Difference, paired_difference, summarise
from mpp.evaluation.verdict import Cost, Row
from mpp.report.notation import (
    is_told,
    show_cost,
    show_difference,
    show_flops,
    show_labels,
    show_mean,
    show_p,
    show_points,
    show_rate,
    show_seconds,
)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_labels(None), "all"),
        (show_labels(1000), "1,000"),
        # t of one degree of freedom, 97.5 %: 12.706; half-widths 12.706 * sd / sqrt(2)
        (show_mean(summarise([50.0, 54.0])), "52.00 [26.59, 77.41]"),
        (show_mean(summarise([80.0])), "80.00"),
        (show_difference(paired_difference([50.0, 54.0], [40.0, 42.0])), "+11.00 [-1.71, +23.71]"),
        (show_difference(paired_difference([80.0], [85.0])), "-5.00"),
        (show_difference(None), ""),
        (show_p(None), ""),
        (show_p(0.0), "< 0.001"),
        (show_p(0.0312), "0.031"),
        (show_p(0.04996), "< 0.05"),
        (show_p(0.05), "0.05"),
        (show_p(1.0), "1"),
        (show_rate(0.003), "0.003"),
        (show_rate(3e-5), "3e-5"),
        (show_flops(0), "0"),
        (show_flops(3.4e15), "3.40e15"),
        (show_seconds(1234.4), "1,234"),
        (show_seconds(0), "0"),
        (show_seconds(1.04), "1.0"),
        (show_cost(Cost(12_800, 7.7e13, 51.4)), ("12,800", "7.70e13", "51")),
        (show_cost(None), ("?", "?", "?")),
    ],
)
def test_figures_are_written_for_people(shown: object, text: object) -> None:
    assert shown == text


def test_points_have_one_decimal_or_as_many_as_show_that_they_are_not_zero() -> None:
    assert show_points(6.72, 3.1, 10.25) == ("6.7", "3.1", "10.2")
    assert show_points(0.04, 3.0) == ("0.04", "3.00")
    assert show_points(0.0, -1.0) == ("0.0", "-1.0")
    assert show_points(2.0, signed=True) == ("+2.0",)


@given(st.floats(0, 1))
def test_a_p_that_is_below_the_level_is_shown_below_it_and_no_other_is(p: float) -> None:
    shown = show_p(p)
    assert (shown.startswith("<") or float(shown) < 0.05) == (p < 0.05)


@pytest.mark.parametrize(
    ("difference", "p_holm", "told"),
    [
        (Difference(5, 1, 9, 0.01, 3), 0.049, True),
        (Difference(-5, -9, -1, 0.01, 3), 0.049, True),
        (Difference(5, 1, 9, 0.01, 3), 0.05, False),
        (Difference(5, -1, 11, 0.01, 3), 0.01, False),
        (Difference(5, None, None, None, 1), None, False),
        (Difference(5, 1, 9, 0.01, 3), None, False),
        (None, None, False),
    ],
)
def test_a_difference_is_told_by_corrected_p_and_interval_together(
    result: Callable[..., Row], difference: Difference | None, p_holm: float | None, told: bool
) -> None:
    assert is_told(replace(result("masked", 5, [50.0]), difference=difference, p_holm=p_holm)) is told
