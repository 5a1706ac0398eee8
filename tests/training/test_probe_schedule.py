"""The settings of probes: none unless asked for, and few enough to be made while a network is trained."""

from dataclasses import fields

import pytest

from mpp.config import describe, resolve
from mpp.errors import ConfigError
from mpp.training.probe_schedule import ProbeRecipe, ProbeSchedule
from mpp.training.recipe import PretrainConfig


def test_a_run_is_not_probed_unless_that_is_asked_for() -> None:
    assert resolve(PretrainConfig, {"shards": "set", "out": "run"}).probe.every is None


def test_a_schedule_adds_when_and_where_to_what_every_probe_knows() -> None:
    added = {field.name for field in fields(ProbeSchedule)} - {field.name for field in fields(ProbeRecipe)}
    assert added == {"every", "shards", "train_split", "test_split", "images"}


def test_every_key_is_described_and_that_of_the_test_warns() -> None:
    page = describe(PretrainConfig, prog="mpp pretrain", about="")
    for field in fields(ProbeSchedule):
        assert f"  probe.{field.name}: " in page, field.name
    assert "has no test left" in page


@pytest.mark.parametrize("tree", [{"every": 0}, {"images": 0}, {"shots": []}, {"shots": [0]}, {"probes": ["svm"]}])
def test_values_that_mean_nothing_are_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(tree))):
        resolve(ProbeSchedule, tree)
