"""Means with intervals, paired differences over seeds and p values of several comparisons (scipy)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.95
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and 95 % t interval of the mean of ``n`` values; None where one value says nothing."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % t interval, and p of the two-sided paired t test.

    None for one pair, and for several gains that are all the same, which no test can judge.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Summary(mean, None, None, None, count)
    sd = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * sd / count**0.5
    return Summary(mean, sd, mean - reach, mean + reach, count)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare ``values`` with ``others`` pair by pair (same seed, same labels): values minus others."""
    gains = [value - other for value, other in zip(values, others, strict=True)]
    summary = summarise(gains)
    if summary.sd is None:
        return Difference(summary.mean, None, None, None, summary.n)
    if summary.sd <= _ROUNDING * max(map(abs, (*values, *others))) and summary.mean != 0:
        return Difference(summary.mean, None, None, None, summary.n)  # a spread that a few images hide is no certainty
    if summary.sd == 0:
        p = 1.0
    else:
        p = float(2 * stats.t.sf(abs(summary.mean) / (summary.sd / summary.n**0.5), summary.n - 1))
    return Difference(summary.mean, summary.low, summary.high, p, summary.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, each in its place (Holm 1979): the i-th smallest of m times m - i + 1.

    Rejecting those below a level errs at all with at most that probability, however the comparisons depend on each
    other. None is smaller than that of a smaller p, none above 1. Raises ``ValueError`` for what is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values lie in [0, 1], not {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
