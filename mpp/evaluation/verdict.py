"""What a comparison found: its rows, what each arm cost, and everything a reader must know to believe them.

Plain values only, so that a page, a table and a JSON file are three ways to write the same thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.evaluation.statistics import Difference, Summary


@dataclass(frozen=True)
class Cost:
    """What a stage took: images seen, operations of forward and backward passes, seconds on the machine it ran on."""

    images: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One arm at one number of labels.

    ``top1`` in percent, over seeds; ``difference`` is to the arm that all are held against, paired by seed, and
    ``p_holm`` its p corrected for all differences of the comparison. ``pretraining`` is the mean of one run of the arm,
    zero for scratch, None for a backbone from outside; ``tuning`` is that of all trials of the grid, ``finetuning`` the
    mean of one seed.
    """

    arm: str
    labels_per_class: int | None
    top1: Summary
    top1_by_seed: tuple[float, ...]
    difference: Difference | None
    p_holm: float | None
    learning_rate: float
    trials: int
    pretraining: Cost | None
    tuning: Cost
    finetuning: Cost


@dataclass(frozen=True)
class ArmFacts:
    """An arm in words, such as "mean_color of 50 % random patches, 1,200 steps of 128 images", and its runs."""

    name: str
    kind: str
    words: str
    parameters: int | None
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class DataFacts:
    """A split and what it was for: pretraining, fine-tuning, test. ``refused`` images never came into it."""

    path: str
    split: str
    role: str
    images: int
    refused: int
    classes: int | None
    fingerprint: str


@dataclass(frozen=True)
class Comparison:
    """All rows, in the order of labels and arms; ``warnings`` would change a reviewer's mind, ``notes`` explain.

    ``metric`` names what top1 is: accuracy over images, or the mean of the accuracies of classes.
    """

    rows: tuple[Row, ...]
    against: str
    arms: tuple[ArmFacts, ...]
    data: tuple[DataFacts, ...]
    seeds: tuple[int, ...]
    metric: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    settings_sha256: str
    environment: Mapping[str, Any]
