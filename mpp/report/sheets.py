"""The tables of a report as plain text by cell, which Markdown and the page then write in their ways."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mpp.evaluation.verdict import ArmFacts, Comparison, Row
from mpp.report.cost_plot import total_flops
from mpp.report.histograms import show_count
from mpp.report.notation import (
    show_cost,
    show_difference,
    show_flops,
    show_labels,
    show_mean,
    show_p,
    show_rate,
)
from mpp.report.plots import label_counts
from mpp.report.trainings import BASELINES, Ending
from mpp.report.wording import name_metric

STAGES = ("pretraining", "tuning", "fine-tuning")
UNITS = ("images", "FLOPs", "seconds")
_MASKED = "masked"


class Sheet(NamedTuple):
    """A table; the first ``words`` columns are words, the others figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int


def results(comparison: Comparison) -> Sheet:
    """Return the results with the accuracy of every seed."""
    header = (*_result_header(comparison), f"by seed ({', '.join(map(str, comparison.seeds))})", "rate", "trials")
    rows = (
        (
            *_result(row),
            " ".join(f"{value:.2f}" for value in row.top1_by_seed),
            show_rate(row.learning_rate),
            str(row.trials),
        )
        for row in comparison.rows
    )
    return Sheet(header, tuple(rows), 2)


def short_results(comparison: Comparison) -> Sheet:
    """Return the results as a terminal has room for them: the number of seeds, and all operations in one number."""
    header = (*_result_header(comparison), "seeds", "rate", "trials", "FLOPs")
    rows = (
        (*_result(row), str(row.top1.n), show_rate(row.learning_rate), str(row.trials), _total(row))
        for row in comparison.rows
    )
    return Sheet(header, tuple(rows), 2)


def costs(comparison: Comparison) -> Sheet:
    """Return what each arm took: a run's pretraining, all trials of tuning, a seed's fine-tuning."""
    header = ("labels", "arm", *(f"{stage}, {unit}" for stage in STAGES for unit in UNITS))
    rows = (
        (
            show_labels(row.labels_per_class),
            row.arm,
            *(cell for cost in (row.pretraining, row.tuning, row.finetuning) for cell in show_cost(cost)),
        )
        for row in comparison.rows
    )
    return Sheet(header, tuple(rows), 2)


def ablation(comparison: Comparison) -> Sheet | None:
    """Return the masked arms by what is different about them (ViT, B.1.2); None where there is but one."""
    arms = [arm for arm in comparison.arms if arm.kind == _MASKED]
    if len(arms) < 2:
        return None
    counts = label_counts(comparison.rows)
    header = ("arm", "what is its own", *(f"{show_labels(count)} labels per class" for count in counts))
    rows = {(row.arm, row.labels_per_class): row for row in comparison.rows}
    cells = (
        (arm.name, words, *(_mean_and_difference(rows.get((arm.name, count))) for count in counts))
        for arm, words in zip(arms, _what_differs(arms), strict=True)
    )
    return Sheet(header, tuple(cells), 2)


def pretraining_ends(endings: Sequence[Ending]) -> Sheet | None:
    """Return how pretraining ended beside what needs no learning; accuracies in percent."""
    if not endings:
        return None
    header = ("arm", "predicts", "step", "loss", "accuracy, %", *map(_baseline_header, BASELINES))
    rows = (
        (
            ending.arm,
            ending.predicts,
            show_count(ending.step),
            *(_number(value, 1) for value in (ending.loss, ending.accuracy)),
            *(_number(ending.baselines.get(name), 100 if name.endswith("_accuracy") else 1) for name in BASELINES),
        )
        for ending in endings
    )
    return Sheet(header, tuple(rows), 2)


def arms(comparison: Comparison) -> Sheet:
    """Return what the arms are."""
    rows = (
        (
            arm.name,
            arm.kind,
            arm.words,
            "?" if arm.parameters is None else show_count(arm.parameters),
            str(len(arm.runs)),
        )
        for arm in comparison.arms
    )
    return Sheet(("arm", "kind", "in words", "parameters", "pretraining runs"), tuple(rows), 3)


def data(comparison: Comparison) -> Sheet:
    """Return the images that were used, and how many were refused."""
    rows = (
        (
            facts.role,
            facts.path,
            facts.split,
            facts.fingerprint,
            show_count(facts.images),
            show_count(facts.refused),
            "none" if facts.classes is None else show_count(facts.classes),
        )
        for facts in comparison.data
    )
    header = ("for", "shards", "split", "fingerprint", "images", "refused", "classes")
    return Sheet(header, tuple(rows), 4)


def environment(facts: Mapping[str, Any]) -> Sheet:
    """Return the environment, nested keys joined by dots."""
    return Sheet(("what", "value"), tuple(_flat(facts, "")), 2)


def _result_header(comparison: Comparison) -> tuple[str, ...]:
    return (
        "labels",
        "arm",
        f"{name_metric(comparison.metric)}, %",
        f"against {comparison.against}",
        "p",
        "p Holm",
    )


def _result(row: Row) -> tuple[str, ...]:
    p = None if row.difference is None else row.difference.p
    return (
        show_labels(row.labels_per_class),
        row.arm,
        show_mean(row.top1),
        show_difference(row.difference),
        show_p(p),
        show_p(row.p_holm),
    )


def _total(row: Row) -> str:
    flops = total_flops(row)
    return "?" if flops is None else show_flops(flops)


def _mean_and_difference(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.top1.mean:.2f}" + (f" ({show_difference(row.difference)})" if row.difference else "")


def _what_differs(arms: Sequence[ArmFacts]) -> list[str]:
    """Return the words of arms without the parts that all of them share."""
    parts = [arm.words.split(", ") for arm in arms]
    shared = set(parts[0]).intersection(*parts[1:])
    return [", ".join(part for part in own if part not in shared) or "nothing" for own in parts]


def _baseline_header(name: str) -> str:
    return name.replace("_accuracy", ", %").replace("_", " ")


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{scale * value:.4g}"


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            shown = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}", shown
