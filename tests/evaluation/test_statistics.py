"""Means, intervals and paired differences agree with scipy and with values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpp.evaluation.statistics import Difference, Summary, holm, paired_difference, summarise

values = st.lists(st.integers(0, 1000).map(lambda number: number / 10), min_size=2, max_size=12)


@given(values.filter(lambda some: len(set(some)) > 1))
def test_the_interval_is_scipys(some: list[float]) -> None:
    summary = summarise(some)
    low, high = stats.t.interval(0.95, len(some) - 1, loc=np.mean(some), scale=stats.sem(some))
    assert summary.mean == pytest.approx(np.mean(some))
    assert summary.sd == pytest.approx(np.std(some, ddof=1))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


def test_two_values_give_the_interval_of_the_table() -> None:
    # Student's t for one degree of freedom and 95 %: 12.706; mean 2, standard error 1.
    summary = summarise([1.0, 3.0])
    assert (summary.mean, summary.sd, summary.n) == (2.0, pytest.approx(2**0.5), 2)
    assert (summary.low, summary.high) == (pytest.approx(2 - 12.706, abs=1e-3), pytest.approx(2 + 12.706, abs=1e-3))


def test_one_value_has_no_interval() -> None:
    assert summarise([81.5]) == Summary(81.5, None, None, None, 1)
    assert paired_difference([81.5], [80.0]) == Difference(1.5, None, None, None, 1)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=12))
def test_the_paired_difference_is_scipys_paired_test(pairs: list[tuple[int, int]]) -> None:
    some, others = zip(*pairs, strict=True)
    if len({one - other for one, other in pairs}) == 1:
        return
    found, expected = paired_difference(some, others), stats.ttest_rel(some, others)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))


def test_pairs_cancel_what_they_share() -> None:
    # The seeds differ by far more than the arms; pair by pair the gain is 1 +- 0.1.
    found = paired_difference([51.0, 61.1, 70.9], [50.0, 60.0, 70.0])
    assert found.low is not None and 0 < found.low < found.mean == pytest.approx(1.0)


def test_equal_gains_claim_no_certainty_and_no_gains_are_none() -> None:
    assert paired_difference([2.0, 3.0], [1.0, 2.0]) == Difference(1.0, None, None, None, 2)
    assert paired_difference([50.1, 60.1, 70.3], [40.1, 50.1, 60.3]).p is None  # equal but for rounding
    assert paired_difference([2.0, 3.0], [2.0, 3.0]) == Difference(0.0, 0.0, 0.0, 1.0, 2)


def test_pairs_must_be_complete() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


def test_holm_gives_the_values_worked_out_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; none below the one before it
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.integers(0, 1000).map(lambda number: number / 1000), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(some: list[float]) -> None:
    adjusted = holm(some)
    assert all(own <= new <= min(1.0, len(some) * own) for own, new in zip(some, adjusted, strict=True))  # Bonferroni
    for level in (0.0105, 0.0505, 0.2005):  # none is met exactly
        rejected = set()
        for rank, place in enumerate(sorted(range(len(some)), key=lambda at: some[at])):
            if some[place] > level / (len(some) - rank):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(adjusted) if p <= level} == rejected


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="p values lie in"):
        holm([0.5, wrong])
