"""How equally the arms of a comparison were treated, in sentences read off the costs in its rows."""

from collections.abc import Callable, Mapping, Sequence

from mpp.evaluation.verdict import Comparison, Cost, Row
from mpp.report.histograms import show_count
from mpp.report.notation import show_flops, show_labels

_NEAR = 1.01  # operations closer than this are called equal


def how_equal(comparison: Comparison) -> tuple[str, ...]:
    """Return what all arms share, and where they do not."""
    seeds = ", ".join(map(str, comparison.seeds))
    pairs = ", and differences are paired by seed" if len(comparison.seeds) > 1 else ""
    first = f"Fine-tuning with seed{'s' * (len(comparison.seeds) > 1)} {seeds}, the same for all arms{pairs}."
    return (
        first,
        *_pretraining(comparison.rows),
        *_same(comparison.rows, "Trials of the fine-tuning rate", lambda row: row.trials),
        *_same(comparison.rows, "Images of a fine-tuning", lambda row: row.finetuning.images),
    )


def _pretraining(rows: Sequence[Row]) -> list[str]:
    costs = {row.arm: row.pretraining for row in rows}
    known = {arm: cost for arm, cost in costs.items() if cost is not None and cost.images}
    said = []
    if len(known) > 1:
        said.append(_images(known))
        flops = sorted(cost.flops for cost in known.values())
        if flops[-1] <= _NEAR * flops[0]:
            said.append(f"Their pretraining took the same operations: {show_flops(flops[0])} FLOPs.")
        else:
            ratio = f", {flops[-1] / flops[0]:.2f} times as many" if flops[0] else ""
            said.append(f"Their pretraining took {show_flops(flops[0])} to {show_flops(flops[-1])} FLOPs{ratio}.")
    unknown = [arm for arm, cost in costs.items() if cost is None]
    if unknown:
        said.append(f"What pretraining cost is not known of {', '.join(unknown)}.")
    none = [arm for arm, cost in costs.items() if cost is not None and not cost.images]
    if none and known:
        said.append(f"Without pretraining, and without its cost: {', '.join(none)}.")
    return said


def _images(known: dict[str, Cost]) -> str:
    counts = {arm: cost.images for arm, cost in known.items()}
    if len(set(counts.values())) == 1:
        return f"All {len(counts)} pretrained arms saw {show_count(next(iter(counts.values())))} images, views counted."
    return f"Pretrained arms saw unequal numbers of images: {_listed(counts)}."


def _same(rows: Sequence[Row], what: str, value: Callable[[Row], int]) -> list[str]:
    """Say a value that all arms have, once or by number of labels; or for which labels they do not have it."""
    by_labels = {
        show_labels(labels): {row.arm: value(row) for row in rows if row.labels_per_class == labels}
        for labels in dict.fromkeys(row.labels_per_class for row in rows)
    }
    unequal = {labels: values for labels, values in by_labels.items() if len(set(values.values())) > 1}
    if unequal:
        return [
            f"{what} are unequal with {labels} labels per class: {_listed(own)}." for labels, own in unequal.items()
        ]
    counts = {labels: next(iter(values.values())) for labels, values in by_labels.items()}
    if len(set(counts.values())) == 1:
        return [f"{what}: {show_count(next(iter(counts.values())))} for every arm."]
    return [f"{what}, for every arm: {_listed({f'{labels} labels': count for labels, count in counts.items()})}."]


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {show_count(value)}" for name, value in values.items())
