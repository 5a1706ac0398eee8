"""What does not fit into the steps of a recipe is refused, with what would fit."""

from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.evaluation.recipe import TransferRecipe, check_steps


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"steps": 100, "evaluate_every": 100}, "evaluate_every 100 is not below steps 100"),
        ({"steps": 500, "ema": 0.9999}, r"10,000 steps, there are 500\n.*fix: ema=0.98"),
        ({"steps": 5, "ema": 0.9}, "fix: ema=null"),
        ({"steps": 10, "schedule": {"warmup_steps": 10}}, "warmup_steps 10 is not below steps 10"),
    ],
)
def test_parts_that_do_not_fit_into_the_steps_are_refused(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_steps(resolve(TransferRecipe, tree))


def test_the_advice_fits() -> None:
    check_steps(resolve(TransferRecipe, {"steps": 500, "ema": 0.98, "evaluate_every": 499}))
    check_steps(resolve(TransferRecipe, {"steps": 10_000, "ema": 0.9999}))


@pytest.mark.parametrize(
    "tree", [{"ema": 1.0}, {"label_smoothing": 1.0}, {"drop_path": 1.0}, {"evaluate_every": 0}, {"metric": "top5"}]
)
def test_values_that_make_no_sense_are_refused_by_name(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(tree))):
        resolve(TransferRecipe, tree)
