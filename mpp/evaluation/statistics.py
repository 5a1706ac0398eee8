"""Means with intervals and paired differences over seeds (scipy)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.95


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
    """Mean of paired differences with its 95 % t interval, and p of the two-sided paired t test; None for one pair."""

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
    if summary.sd == 0:
        p = 1.0 if summary.mean == 0 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(summary.mean) / (summary.sd / summary.n**0.5), summary.n - 1))
    return Difference(summary.mean, summary.low, summary.high, p, summary.n)
