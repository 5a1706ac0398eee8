"""Arms share a recipe: what would make one unequal is refused, the rest is said in words."""

from dataclasses import replace
from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.evaluation.arms import (
    BUILT_IN,
    Arm,
    Masked,
    Outside,
    Scratch,
    Supervised,
    describe,
    resolve_arms,
    with_equal_flops,
)
from mpp.evaluation.plan import CompareConfig
from mpp.model.masking import BlockMask, RandomMask
from mpp.model.mixing import Mixing
from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig
from mpp.training.recipe import PretrainRecipe


@pytest.fixture
def shared(tiny_vit: dict[str, Any]) -> PretrainRecipe:
    """A recipe of a tiny network."""
    return resolve(PretrainRecipe, {"vit": tiny_vit, "steps": 100, "global_batch": 8})


def arm(shared: PretrainRecipe, variant: Any) -> Arm:
    return resolve_arms(("one",), {"one": variant}, shared)[0]


def test_the_built_in_arms_differ_in_their_task_alone(shared: PretrainRecipe) -> None:
    masked, supervised, scratch = resolve_arms(tuple(BUILT_IN), {}, shared)
    assert masked.recipe == shared
    assert supervised.recipe == replace(shared, task=ClassificationConfig())
    assert scratch.recipe is None and scratch.source == "scratch"
    assert masked.changed == supervised.changed == ()


def test_an_arm_keeps_all_of_the_recipe_but_what_it_changes(shared: PretrainRecipe) -> None:
    blocks = arm(shared, Masked(changes={"task": {"mask": {"kind": "block", "ratio": 0.4}}}))
    assert blocks.recipe == replace(shared, task=MaskedPatchesConfig(mask=BlockMask(ratio=0.4)))
    assert blocks.changed == ("task",)
    slow = arm(shared, Masked(changes={"optimizer": {"learning_rate": 1e-5}}))
    assert slow.recipe is not None and slow.changed == ("optimizer",)
    assert slow.recipe.optimizer == replace(shared.optimizer, learning_rate=1e-5)


@pytest.mark.parametrize("key", ["steps", "global_batch", "seed", "stream", "precision"])
def test_an_arm_with_a_budget_or_data_of_its_own_is_refused(shared: PretrainRecipe, key: str) -> None:
    with pytest.raises(ConfigError, match=f"variants.one.changes.{key}: all arms have the same"):
        arm(shared, Masked(changes={key: 1}))


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Masked(changes={"taks": {}}), "did you mean task"),
        (Masked(changes={"task": {"mask": {"ratoi": 0.4}}}), "did you mean"),
        (Masked(changes={"task": {"kind": "classification"}}), "is masked, its task is classification"),
        (Outside(source="scratch"), "variants.one.kind=scratch"),
        (Masked(changes={"ema": 0.9}), "all arms have the same"),
        (Supervised(changes={"task": {"kind": "masked_patches"}}), "is supervised, its task is masked_patches"),
        (Supervised(changes={"vit": {"name": "vit_tinny"}}), "vit_tiny"),
    ],
)
def test_what_is_no_arm_is_refused_with_what_was_meant(shared: PretrainRecipe, variant: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        arm(shared, variant)


def test_names_are_known_used_and_fit_for_files(shared: PretrainRecipe) -> None:
    with pytest.raises(ConfigError, match="no arm 'teacher'; known: masked, supervised, scratch"):
        resolve_arms(("teacher",), {}, shared)
    with pytest.raises(ConfigError, match="teacher in no arm"):
        resolve_arms(("masked",), {"teacher": Outside(source="x")}, shared)
    with pytest.raises(ConfigError, match="no name for a folder"):
        resolve_arms(("../up",), {"../up": Masked()}, shared)


def test_mixing_of_a_supervised_recipe_is_kept(shared: PretrainRecipe) -> None:
    task = ClassificationConfig(mixing=Mixing(mixup=0.5))
    (supervised,) = resolve_arms(("supervised",), {}, replace(shared, task=task))
    assert supervised.recipe is not None and supervised.recipe.task == task


def test_equal_flops_give_a_dear_arm_fewer_steps_and_leave_the_first_as_it_is(shared: PretrainRecipe) -> None:
    variants = {"wide": Masked(changes={"vit": {"width": 64}})}
    masked, wide, scratch = with_equal_flops(resolve_arms(("masked", "wide", "scratch"), variants, shared), None)
    assert masked.recipe == shared and scratch.recipe is None
    assert wide.recipe is not None and wide.recipe.steps < shared.steps
    one_step = wide.flops_per_image(None)
    assert abs(wide.recipe.steps * one_step - shared.steps * masked.flops_per_image(None)) <= one_step / 2


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Masked(), "mean_color of 50 % random patches, 100 steps of 8 images"),
        (
            Masked(changes={"task": {"target": {"kind": "pixels"}, "mask": {"ratio": 0.75, "masked": 1, "other": 0}}}),
            "pixels of 75 % random patches (100/0/0), 100 steps of 8 images",
        ),
        (
            Masked(changes={"task": {"target": {"kind": "downsized", "side": 2, "bits": 2}}, "clip": None}),
            "downsized bits 2 side 2 of 50 % random patches, 100 steps of 8 images; clip of its own",
        ),
        (Supervised(), "labels, 100 steps of 8 images"),
        (Scratch(), "no pretraining"),
        (Scratch(same_flops=True), "no pretraining, as many operations in all as with it"),
        (Outside(source="timm:vit_small_patch16_224"), "timm:vit_small_patch16_224, pretrained elsewhere"),
    ],
)
def test_an_arm_is_described_by_what_matters(shared: PretrainRecipe, variant: Any, words: str) -> None:
    assert describe(arm(shared, variant)) == words


def test_variants_are_read_from_yaml_with_the_mistake_named() -> None:
    given = {"shards": "s", "out": "o", "arms": ["scratch", "a"]}
    settings = resolve(CompareConfig, {**given, "variants": {"a": {"kind": "masked", "changes": {"clip": None}}}})
    assert settings.variants == {"a": Masked(changes={"clip": None})}
    with pytest.raises(ConfigError, match=r"variants\.a\.kind: 'mask' is unknown; one of masked, supervised"):
        resolve(CompareConfig, {**given, "variants": {"a": {"kind": "mask"}}})
    with pytest.raises(ConfigError, match=r"variants\.a\.sauce: unknown key; did you mean variants\.a\.source"):
        resolve(CompareConfig, {**given, "variants": {"a": {"kind": "backbone", "sauce": "x"}}})


def test_the_default_mask_is_the_papers(shared: PretrainRecipe) -> None:
    masked = resolve_arms(("masked",), {}, shared)[0]
    assert masked.recipe is not None and masked.recipe.task == MaskedPatchesConfig(mask=RandomMask())
