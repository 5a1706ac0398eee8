"""A plan is a function of the settings: which parts there are; all arms share everything but their backbone."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from mpp.config import merge, resolve
from mpp.evaluation.plan import CompareConfig, Part, make_plan
from mpp.shards.indexing import open_any


@pytest.fixture
def tree(tiny_shards: Path, tiny_vit: dict[str, Any]) -> dict[str, Any]:
    """A comparison of the three usual arms."""
    budget = {"steps": 10, "global_batch": 12}
    return {
        "shards": str(tiny_shards),
        "out": "out",
        "labels_per_class": [5, None],
        "pretrain": {"vit": tiny_vit, **budget},
        "transfer": {**budget, "learning_rates": [0.1, 0.2]},
    }


def test_parts_come_in_stages_that_need_those_before_alone(tree: dict[str, Any]) -> None:
    pretraining, choosing, final = make_plan(resolve(CompareConfig, tree)).parts()
    assert [part.name for part in pretraining] == ["pretrain-masked-seed0", "pretrain-supervised-seed0"]
    assert [part.name for part in choosing] == [
        f"choose-{arm}-{labels}labels" for labels in ("5", "all") for arm in ("masked", "supervised", "scratch")
    ]
    assert len(final) == 2 * 3 * 3
    names = [part.name for part in (*pretraining, *choosing, *final)]
    assert len(names) == len(set(names))


def test_with_pretraining_for_each_seed_a_fine_tuning_starts_from_that_of_its_own(tree: dict[str, Any]) -> None:
    plan = make_plan(resolve(CompareConfig, {**tree, "pretrain_per_seed": True}))
    assert len(next(plan.parts())) == 6
    masked = plan.arm("masked")
    assert [plan.transfer(masked, 5, seed).backbone for seed in (0, 2)] == [
        "out/pretrain/masked-seed0",
        "out/pretrain/masked-seed2",
    ]


def test_the_fine_tunings_of_all_arms_differ_in_their_backbone_alone(tree: dict[str, Any]) -> None:
    plan = make_plan(resolve(CompareConfig, tree))
    transfers = [plan.transfer(arm, 5, 1) for arm in plan.arms]
    different = {
        field.name for field in fields(transfers[0]) if len({repr(getattr(one, field.name)) for one in transfers}) > 1
    }
    assert different == {"backbone", "vit"}  # a backbone file carries its own


def test_the_pretrainings_of_all_arms_differ_in_their_task_and_place_alone(tree: dict[str, Any]) -> None:
    plan = make_plan(resolve(CompareConfig, tree))
    masked, supervised = (plan.pretraining(plan.arm(name), 0) for name in ("masked", "supervised"))
    assert replace(masked, task=supervised.task, out=supervised.out) == supervised


def test_differences_are_to_scratch_or_the_last_arm_or_the_one_that_is_named(tree: dict[str, Any]) -> None:
    def against(**changes: Any) -> str:
        return make_plan(resolve(CompareConfig, merge(tree, changes))).against

    assert against() == "scratch"
    assert against(arms=["masked", "supervised"]) == "supervised"
    assert against(against="masked") == "masked"


@pytest.mark.parametrize("place", ["shards", "labelled"])
def test_a_plan_has_a_protocol_s_set_written_before_its_parts_need_it(
    tree: dict[str, Any], parquet: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    labels = [number % 3 for number in range(18)]
    source = parquet({"train": labels, "test": labels}, datasets.Value("int64"))
    changes = {place: str(tmp_path / "set"), "transfer": {"data": {"source": str(source), "classes": 3}}}
    plan = make_plan(resolve(CompareConfig, merge(tree, changes)))
    assert plan.num_classes == 3
    assert open_any(str(tmp_path / "set"), "test").samples == 18


def test_the_name_of_a_part_says_what_it_is() -> None:
    assert Part("final", "masked", None, 2).name == "final-masked-alllabels-seed2"
    assert Part("choose", "masked", 50, 0).name == "choose-masked-50labels"
