"""How the figures of a comparison are written, alike on the page, in Markdown and in sentences."""

from mpp.evaluation.statistics import Difference, Summary
from mpp.evaluation.verdict import Cost, Row
from mpp.report.histograms import show_count

ALPHA = 0.05  # a difference is told where its p, corrected for all comparisons, is below
_MOST_DECIMALS = 4


def show_labels(labels_per_class: int | None) -> str:
    """Write a number of labelled images of each class: 50, or all."""
    return "all" if labels_per_class is None else show_count(labels_per_class)


def show_mean(summary: Summary) -> str:
    """Write a mean in percent with its interval where there is one: 52.00 [26.59, 77.41]."""
    if summary.low is None or summary.high is None:
        return f"{summary.mean:.2f}"
    return f"{summary.mean:.2f} [{summary.low:.2f}, {summary.high:.2f}]"


def show_difference(difference: Difference | None) -> str:
    """Write a difference in points with its interval where there is one: +11.00 [-1.71, +23.71]."""
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def show_p(p: float | None) -> str:
    """Write a p value with two digits; what is below 0.001 or, once rounded, no longer below 0.05, as such."""
    if p is None:
        return ""
    if p < 0.001:
        return "< 0.001"
    shown = f"{p:.2g}"
    return f"< {ALPHA:g}" if p < ALPHA <= float(shown) else shown


def show_rate(rate: float) -> str:
    """Write a learning rate with three digits: 0.003, 3e-5."""
    return _short_exponent(f"{rate:.3g}")


def show_flops(flops: float) -> str:
    """Write a number of operations with three digits: 0, 3.40e15."""
    return _short_exponent(f"{flops:.2e}") if flops else "0"


def show_seconds(seconds: float) -> str:
    """Write seconds: whole ones with commas, those below 10 with a decimal."""
    return show_count(seconds) if seconds >= 10 or not seconds else f"{seconds:.1f}"


def show_cost(cost: Cost | None) -> tuple[str, str, str]:
    """Write images, operations and seconds of a stage; a cost that nobody knows is a question mark."""
    if cost is None:
        return "?", "?", "?"
    return show_count(cost.images), show_flops(cost.flops), show_seconds(cost.seconds)


def show_points(*values: float, signed: bool = False) -> tuple[str, ...]:
    """Write numbers of points for a sentence, with as few decimals as show none that is not zero as zero."""
    decimals = next(
        (places for places in range(1, _MOST_DECIMALS) if all(not value or round(value, places) for value in values)),
        _MOST_DECIMALS,
    )
    return tuple(f"{value or 0.0:{'+' if signed and value else ''}.{decimals}f}" for value in values)


def is_told(row: Row) -> bool:
    """Say whether the row's difference is told apart from none: interval without zero and corrected p below 0.05."""
    difference = row.difference
    if difference is None or difference.low is None or difference.high is None or row.p_holm is None:
        return False
    return row.p_holm < ALPHA and (difference.low > 0 or difference.high < 0)


def _short_exponent(text: str) -> str:
    number, exponent, power = text.partition("e")
    return f"{number}e{int(power)}" if exponent else text
