"""The choice of a rate and a number of steps, on labels held out of the training labels; test labels have no part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mpp.errors import NumericsError


class Point(NamedTuple):
    """A learning rate and how many of the steps of its schedule were taken."""

    learning_rate: float
    steps: int

    def __str__(self) -> str:
        return f"{self.learning_rate:g}@{self.steps}"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what all trials together cost.

    ``held_out_top1`` has the accuracy, percent, by ``RATE@STEPS``: the mean of the classes' where the recipe's metric
    is that. A rate that diverged has none. ``images_seen`` and ``flops`` are those of training.
    """

    learning_rate: float
    steps: int
    trials: int
    held_out_top1: Mapping[str, float]
    images_seen: int
    flops: float
    seconds: float


def no_choice(learning_rate: float, steps: int) -> Choice:
    """Return the choice among one: it costs nothing."""
    return Choice(learning_rate, steps, 0, {}, 0, 0.0, 0.0)


def best_of(scores: Mapping[Point, float]) -> Point:
    """Return the point with the best score; of equals the one with fewer steps, then with the smaller rate.

    Raises ``NumericsError`` where there is none: every rate diverged.
    """
    if not scores:
        raise NumericsError(
            "fine-tuning diverged at every learning rate of the grid", fix="smaller learning_rates, or clip=1"
        )
    return min(scores, key=lambda point: (-scores[point], point.steps, point.learning_rate))


def ends(steps: int, every: int | None) -> list[int]:
    """Return after how many of ``steps`` steps a trial is tested: after ``every`` so many, and at the end."""
    return [*range(every, steps, every), steps] if every else [steps]
