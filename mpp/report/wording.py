"""The verdict of a comparison in sentences that claim no more than its intervals and corrected p values say.

An arm gained or lost where ``is_told``; elsewhere no difference could be told, and one seed is no evidence either way.
"""

from dataclasses import dataclass

from mpp.evaluation.statistics import Difference
from mpp.evaluation.verdict import Comparison, Row
from mpp.report.notation import is_told, show_labels, show_p, show_points

METRICS = {"top1": "top-1 accuracy", "mean_per_class": "mean per-class accuracy"}
_MASKED, _SCRATCH = "masked", "scratch"


@dataclass(frozen=True)
class Verdict:
    """One sentence on the arm that the comparison is about, one on each of another kind, and what to read before."""

    headline: str
    beside: tuple[str, ...]
    caveat: str


def verdict(comparison: Comparison) -> Verdict:
    """Return the verdict on the first masked arm, or else the first one, that is not the one all are held against.

    The first in the order of the settings, not the best: the best of several would be chosen by its luck. The other
    arms of its kind are variants of it, which a table shows better than sentences.
    """
    own = [arm for arm in comparison.arms if arm.name != comparison.against]
    if not own:
        return Verdict("One arm alone: there is nothing to hold it against.", (), _caveat(comparison))
    subject = next((arm for arm in own if arm.kind == _MASKED), own[0])
    beside = tuple(_sentence(comparison, arm.name) for arm in own if arm.kind != subject.kind)
    return Verdict(_sentence(comparison, subject.name), beside, _caveat(comparison))


def name_metric(metric: str) -> str:
    """Write what the accuracies are: top-1 accuracy, mean per-class accuracy."""
    return METRICS.get(metric, metric)


def name_arm(comparison: Comparison, name: str) -> str:
    """Write an arm as a sentence needs it: masked pretraining, scratch, or the arm NAME where its kind has several."""
    kind = next(arm.kind for arm in comparison.arms if arm.name == name)
    alone = sum(arm.kind == kind for arm in comparison.arms) == 1
    if not (alone or name == kind) or kind not in (_MASKED, "supervised", _SCRATCH):
        return f"the arm {name}"
    return kind if kind == _SCRATCH else f"{kind} pretraining"


def by_labels(row: Row) -> float:
    """Return the place of a row where few labels come first and all of them last."""
    return float("inf") if row.labels_per_class is None else row.labels_per_class


def _caveat(comparison: Comparison) -> str:
    count = len(comparison.warnings)
    return f"Read with {'this warning' if count == 1 else f'these {count} warnings'}:" if count else ""


def _sentence(comparison: Comparison, arm: str) -> str:
    """Write what is known of one arm, by number of labels: the first clause in full, the others in brief."""
    rows = sorted((row for row in comparison.rows if row.arm == arm), key=by_labels)
    if not rows:
        return f"Of {name_arm(comparison, arm)} there is no result."
    clauses = [_clause(comparison, row, brief=place > 0) for place, row in enumerate(rows)]
    return f"W{'; '.join(clauses)[1:]}."


def _clause(comparison: Comparison, row: Row, *, brief: bool) -> str:
    difference, labels = row.difference, _with_labels(row, brief=brief)
    subject, against = name_arm(comparison, row.arm), name_arm(comparison, comparison.against)
    metric = name_metric(comparison.metric)
    if difference is None:
        return f"{labels} {subject} has nothing to be held against"
    size = _size(difference)
    if difference.low is None or difference.high is None:
        more = "as much" if not difference.mean else f"{size} {'more' if difference.mean > 0 else 'less'}"
        if brief:
            return f"{labels} it had {more}"
        return (
            f"{labels} {subject} had {more} {metric} {'than' if difference.mean else 'as'} {against} "
            f"in {'one seed' if difference.n == 1 else f'each of {difference.n} seeds alike'}, no interval: no claim"
        )
    facts = _facts(comparison, row, brief=brief)
    if not is_told(row):
        between = "" if brief else f" in {metric} between {subject} and {against}"
        (mean,) = show_points(difference.mean, signed=True)
        once = " once corrected" if difference.low > 0 or difference.high < 0 else ""
        return f"{labels} no difference{between} could be told{once} ({mean}, {facts})"
    verb, than = ("gained", "over") if difference.mean > 0 else ("lost", "against")
    if brief:
        return f"{labels} it {verb} {size} ({facts})"
    return f"{labels} {subject} {verb} {size} of {metric} {than} {against} ({facts})"


def _with_labels(row: Row, *, brief: bool) -> str:
    count = row.labels_per_class
    if count is None:
        return "with all labels"
    return f"with {show_labels(count)}" if brief else f"with {show_labels(count)} label{'s' * (count != 1)} per class"


def _size(difference: Difference) -> str:
    (shown,) = show_points(abs(difference.mean))
    return f"{shown} point{'' if shown == '1.0' else 's'}"


def _facts(comparison: Comparison, row: Row, *, brief: bool) -> str:
    """Write interval, p and seeds; in brief without what was said before."""
    assert row.difference is not None and row.difference.low is not None and row.difference.high is not None
    interval = " to ".join(show_points(row.difference.low, row.difference.high))
    shown = show_p(row.p_holm)
    p = f", p {shown}" if shown.startswith("<") else f", p = {shown}" if shown else ""
    if brief:
        return interval + p
    count = sum(other.p_holm is not None for other in comparison.rows)
    corrected = f" corrected for {count} comparisons" if p and count > 1 else ""
    return f"95 % interval {interval}{p}{corrected}, {row.difference.n} seeds"
