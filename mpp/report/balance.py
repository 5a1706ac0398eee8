"""How the images of a set are shared between its classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mpp.report.samples import Sample, picture, spread
from mpp.shards.shardset import ShardSet

MOST_CLASSES = 40  # a set with more shows the ENDS most and least frequent ones
ENDS = 12
STAMP = 80  # pixels of a class's picture, longer side
CURVE_POINTS = 200


class ClassRow(NamedTuple):
    """One class: its images by split and in all, their share of the most frequent class's, and one of them."""

    name: str
    counts: tuple[int, ...]
    total: int
    width: float
    picture: str | None


class Balance(NamedTuple):
    """The classes by falling number of images; ``counted`` of all images are in the numbers.

    ``groups`` are all classes, or the two ends of their order; then ``curve`` has every class as (place, share of the
    most frequent one), both 0 to 1.
    """

    classes: int
    empty: int
    counted: int
    most: int
    median: int
    least: int
    groups: tuple[tuple[ClassRow, ...], ...]
    curve: tuple[tuple[float, float], ...]


def balance(
    sets: Sequence[ShardSet], recorded: Mapping[str, Counter[int] | None], samples: Sequence[Sample]
) -> Balance | None:
    """Return the balance of labels, None for a set without; counted in ``samples`` where no record counts them."""
    if not samples or any(sample.label is None for sample in samples):
        return None
    counts = [labels for shards in sets if (labels := recorded[shards.split]) is not None]
    if len(counts) < len(sets):
        counts = [_labels_in(samples, shards.split) for shards in sets]
    totals = sum(counts, Counter[int]())
    names = sets[0].classes or ()
    ordered = sorted({*totals, *range(len(names))}, key=lambda label: (-totals[label], label))
    ends = [ordered] if len(ordered) <= MOST_CLASSES else [ordered[:ENDS], ordered[-ENDS:]]
    examples = {sample.label: sample for sample in reversed(samples)}

    def row(label: int) -> ClassRow:
        name = class_name(label, names)
        stamp = picture(examples[label], STAMP) if label in examples else None
        return ClassRow(name, tuple(n[label] for n in counts), totals[label], totals[label] / totals[ordered[0]], stamp)

    return Balance(
        classes=len(ordered),
        empty=sum(not totals[label] for label in ordered),
        counted=totals.total(),
        most=totals[ordered[0]],
        median=totals[ordered[len(ordered) // 2]],
        least=totals[ordered[-1]],
        groups=tuple(tuple(map(row, labels)) for labels in ends),
        curve=_curve([totals[label] for label in ordered]) if len(ends) > 1 else (),
    )


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a class, its number where it has none."""
    return names[label] if 0 <= label < len(names) else str(label)


def _labels_in(samples: Sequence[Sample], split: str) -> Counter[int]:
    return Counter(sample.label for sample in samples if sample.split == split and sample.label is not None)


def _curve(counts: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Return falling counts as points, at most ``CURVE_POINTS`` of them."""
    chosen = spread(len(counts), CURVE_POINTS).tolist()
    return tuple((number / (len(counts) - 1), counts[number] / counts[0]) for number in chosen)
