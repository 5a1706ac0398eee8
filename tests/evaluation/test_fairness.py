"""Test images that were learnt from are refused where they are many and told where they are few; so is what differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpp import shard
from mpp.config import resolve
from mpp.errors import ConfigError, DataError
from mpp.evaluation.arms import Arm, Masked, Outside, Supervised, resolve_arms
from mpp.evaluation.fairness import budget_warnings, check_leaks, evidence_warnings, result_warnings
from mpp.shards.shardset import ShardSet, open_shards
from mpp.training.recipe import PretrainRecipe

Sets = Callable[..., tuple[ShardSet, ShardSet]]
TEST_IMAGES = 200


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    """Make a set of 200 test and 40 train images, of which ``leaked`` are test images; return test and train."""

    def make(leaked: int, name: str = "set") -> tuple[ShardSet, ShardSet]:
        source = tmp_path / f"{name}-images"
        rng = np.random.default_rng(0)
        for split, count in (("test", TEST_IMAGES), ("train", 40)):
            for number in range(count):
                file = source / split / f"class{number % 2}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(file)
        for number in range(leaked):
            part = f"class{number % 2}/{number}.png"
            (source / "train" / part).write_bytes((source / "test" / part).read_bytes())
        assert shard.main([str(source), str(tmp_path / name), "workers=0", "labels=folders"]) == 0
        return open_shards(tmp_path / name, "test"), open_shards(tmp_path / name, "train")

    return make


def test_sets_that_share_no_image_give_no_warning(sets: Sets) -> None:
    test, train = sets(0)
    assert check_leaks(test, train, train, labels_used=True) == []


def test_a_test_image_among_the_labelled_ones_is_told_by_name(sets: Sets) -> None:
    test, train = sets(1)
    (warning,) = check_leaks(test, train, train, labels_used=True)
    assert "1 of 200 test images (0.5 %)" in warning and "of fine-tuning, with labels" in warning


def test_many_leaked_test_images_with_labels_are_refused(sets: Sets) -> None:
    test, train = sets(3)
    with pytest.raises(DataError, match=r"3 of 200 test images \(1.5 %\) are also .* fine-tuning, with labels"):
        check_leaks(test, train, train, labels_used=False)


def test_many_test_images_seen_without_labels_are_told_and_with_labels_refused(sets: Sets) -> None:
    test, train = sets(0, "clean")
    _, pretraining = sets(20, "leaky")
    (warning,) = check_leaks(test, train, pretraining, labels_used=False)
    assert "20 of 200 test images" in warning and "of pretraining, without labels" in warning
    with pytest.raises(DataError, match="of pretraining, with labels"):
        check_leaks(test, train, pretraining, labels_used=True)


def test_to_test_on_what_is_trained_on_is_refused(sets: Sets) -> None:
    _, train = sets(0)
    with pytest.raises(ConfigError, match="its accuracy would say nothing"):
        check_leaks(train, train, train, labels_used=False)


@pytest.fixture
def shared(tiny_vit: dict[str, Any]) -> PretrainRecipe:
    """A recipe of a tiny network."""
    task = {"target": {"kind": "pixels"}}  # of a head as small as that for labels
    vit = {**tiny_vit, "depth": 8}  # the last block, of which masked arms compute a half, is a small part
    return resolve(PretrainRecipe, {"vit": vit, "task": task, "steps": 10, "global_batch": 8})


def _costs(arms: tuple[Arm, ...]) -> dict[str, float]:
    return {arm.name: arm.flops_per_image(2) * (arm.recipe.steps if arm.recipe else 0) for arm in arms}


def test_equal_arms_and_enough_seeds_give_no_warning(shared: PretrainRecipe) -> None:
    arms = resolve_arms(("masked", "supervised", "scratch"), {}, shared)
    assert budget_warnings(arms, _costs(arms), (0, 1, 2)) == []


def test_a_larger_network_few_seeds_and_a_backbone_from_outside_are_told(shared: PretrainRecipe) -> None:
    variants = {"deep": Supervised(changes={"vit": {"depth": 16}}), "theirs": Outside(source="timm:vit_x")}
    arms = resolve_arms(("masked", "deep", "theirs"), variants, shared)
    text = "\n".join(budget_warnings(arms, _costs(arms), (0, 1)))
    assert "the arm deep differs from the others in its vit" in text
    assert "pretraining of deep takes" in text and "times the operations of masked" in text
    assert "theirs (timm:vit_x) cost and saw is not known" in text
    assert "2 seed(s)" in text


def test_another_mask_is_no_unfairness(shared: PretrainRecipe) -> None:
    variants = {"blocks": Masked(changes={"task": {"mask": {"kind": "block"}}})}
    arms = resolve_arms(("masked", "blocks"), variants, shared)
    assert budget_warnings(arms, _costs(arms), (0, 1, 2)) == []


def test_what_the_evidence_does_not_hold_is_told(shared: PretrainRecipe) -> None:
    arms = resolve_arms(("masked", "supervised", "scratch"), {}, shared)
    once, labels = evidence_warnings(arms, 60, pretrain_per_seed=False)
    assert "not of pretraining" in once and "labels of all 60 images" in labels
    assert evidence_warnings(resolve_arms(("masked",), {}, shared), 60, pretrain_per_seed=True) == []


def test_results_with_other_numbers_of_trials_or_test_images_are_told() -> None:
    equal = {"trials": 2, "test_images": 10, "flops": 6.0, "images_seen": 3}
    fair = {("masked", 5): [equal, equal], ("scratch", 5): [equal], ("scratch", None): [{**equal, "trials": 4}]}
    assert result_warnings(fair) == []
    (trials,) = result_warnings({**fair, ("masked", 5): [equal, {**equal, "trials": 20}]})
    assert trials == "trials of the grid differ with 5 labels per class: masked 2/20, scratch 2"
    (images,) = result_warnings({**fair, ("scratch", 5): [{**equal, "test_images": 9}]})
    assert images.startswith("test images differ")
