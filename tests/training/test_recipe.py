"""The recipe holds what decides a result; the run adds its data and its folder, and says what it is asked for."""

from dataclasses import fields

import pytest

from mpp.config import describe, dump, resolve
from mpp.errors import ConfigError
from mpp.training.recipe import PretrainConfig, PretrainRecipe


def test_a_run_adds_to_its_recipe_where_things_are_and_no_more() -> None:
    added = {field.name for field in fields(PretrainConfig)} - {field.name for field in fields(PretrainRecipe)}
    assert added == {"shards", "split", "out", "allow_changed"}


def test_a_run_by_default_is_the_papers_corruption_and_target() -> None:
    task = dump(PretrainRecipe())["task"]
    assert (task["mask"]["ratio"], task["mask"]["masked"], task["mask"]["other"]) == (0.5, 0.8, 0.1)
    assert task["target"] == {"kind": "mean_color", "bits": 3}


def test_every_key_is_described() -> None:
    page = describe(PretrainConfig, prog="mpp pretrain", about="")
    for field in fields(PretrainConfig):
        assert field.name in page, field.name


@pytest.mark.parametrize("key", ["steps", "global_batch", "micro_batch", "log_every", "save_every", "ema"])
def test_counts_and_decays_below_their_bounds_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        resolve(PretrainConfig, {"shards": "set", "out": "run", key: 0})
