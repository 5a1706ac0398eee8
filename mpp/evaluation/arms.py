"""The arms of a comparison: where each one's backbone comes from, and how it may differ from the others.

Equal by construction: an arm is the recipe that all share, and names what is different about it. What would give it
another budget, other data or another seed cannot be among that.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field

from mpp.config import config, dump, merge, resolve
from mpp.errors import ConfigError
from mpp.evaluation.backbones import SCRATCH
from mpp.model.encoders import build_encoder
from mpp.model.families import is_resnet
from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig
from mpp.training.recipe import PretrainRecipe
from mpp.training.utilisation import task_flops

# What an arm's pretraining may have of its own; a reader is warned of all but the task.
CHANGEABLE: Final = ("task", "vit", "view", "optimizer", "learning_rate_scaling", "schedule", "clip")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE)  # it becomes part of names of files


@config
class Masked:
    """Masked patch prediction by the recipe ``pretrain``."""

    kind: Literal["masked"] = "masked"
    changes: dict[str, Any] = Field({}, description=f"what differs from pretrain: {', '.join(CHANGEABLE)}")


@config
class Supervised:
    """Classification of the same images by the recipe ``pretrain``, from their labels."""

    kind: Literal["supervised"] = "supervised"
    changes: dict[str, Any] = Field({}, description="what differs from pretrain, beside the task: a ResNet in vit ...")


@config
class Scratch:
    """Fine-tuning from fresh weights."""

    kind: Literal["scratch"] = "scratch"
    same_flops: bool = Field(
        False, description="fine-tune for as many operations as the first pretrained arm takes in all"
    )


@config
class Outside:
    """A backbone that was pretrained elsewhere, on other images and at another cost."""

    kind: Literal["backbone"] = "backbone"
    source: str = Field(description="run folder, backbone file, timm:NAME or timm:NAME@FILE")


Variant = Annotated[Masked | Supervised | Scratch | Outside, Field(discriminator="kind")]
BUILT_IN: Final[Mapping[str, Masked | Supervised | Scratch | Outside]] = {
    "masked": Masked(),
    "supervised": Supervised(),
    "scratch": Scratch(),
}


@dataclass(frozen=True)
class Arm:
    """One arm, resolved. ``recipe`` is that of its pretraining, None where it has none of its own."""

    name: str
    kind: str
    recipe: PretrainRecipe | None
    source: str = SCRATCH  # the backbone of an arm without pretraining of its own
    same_flops: bool = False
    changed: tuple[str, ...] = ()  # keys of pretrain that it has of its own

    @property
    def images(self) -> int:
        """Return the images that its pretraining sees, views counted."""
        return 0 if self.recipe is None else self.recipe.steps * self.recipe.global_batch

    def flops(self, num_classes: int | None) -> float:
        """Return the operations of its pretraining."""
        return self.images * self.flops_per_image(num_classes)

    def flops_per_image(self, num_classes: int | None) -> float:
        """Return the operations of a pretraining step on one image; 0 without pretraining."""
        return 0.0 if self.recipe is None else task_flops(self.recipe.task, self.recipe.vit, num_classes)


def resolve_arms(
    names: tuple[str, ...], variants: Mapping[str, Masked | Supervised | Scratch | Outside], shared: PretrainRecipe
) -> tuple[Arm, ...]:
    """Return the arms of these names, built-in ones or ``variants``; raise ``ConfigError`` for what is none.

    The networks of all arms are built, without memory, so that a wrong one is found here.
    """
    unused = [name for name in variants if name not in names]
    known = {**BUILT_IN, **variants}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"arms: there is no arm {name!r}; known: {', '.join(known)}",
                fix=f"variants.{name}.kind=masked to describe it",
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(f"arms: {name!r} is no name for a folder", fix="letters, digits, - and _")
    if unused:
        raise ConfigError(f"variants: {', '.join(unused)} in no arm", fix=f"arms=[..., {unused[0]}], or leave it out")
    return tuple(_resolve(name, known[name], shared) for name in names)


def _resolve(name: str, variant: Masked | Supervised | Scratch | Outside, shared: PretrainRecipe) -> Arm:
    if isinstance(variant, Outside):
        if variant.source == SCRATCH:
            raise ConfigError(f"variants.{name}.source: scratch is an arm", fix=f"variants.{name}.kind=scratch")
        return Arm(name, variant.kind, None, variant.source)
    if isinstance(variant, Scratch):
        return Arm(name, variant.kind, None, same_flops=variant.same_flops)
    _check_changes(name, variant)
    is_own = isinstance(variant, Masked) or isinstance(shared.task, ClassificationConfig)
    base = shared if is_own else replace(shared, task=ClassificationConfig())
    where = f"variants.{name}.changes"
    recipe = resolve(PretrainRecipe, merge(dump(base), variant.changes), where=where, fix="mpp pretrain --help")
    expected = MaskedPatchesConfig if isinstance(variant, Masked) else ClassificationConfig
    if not isinstance(recipe.task, expected):
        raise ConfigError(
            f"the arm {name} is {variant.kind}, its task is {recipe.task.kind}",
            fix=f"pretrain.task.kind={expected().kind}, or arms without {name}",
        )
    if isinstance(variant, Masked) and is_resnet(recipe.vit):
        raise ConfigError(
            f"{recipe.vit.name} has no patch tokens, the masked arm {name} needs them",
            fix="arms without it, or a variant of kind supervised for the ResNet alone",
        )
    with torch.device("meta"):
        build_encoder(recipe.vit)
    return Arm(name, variant.kind, recipe, "", changed=tuple(_changed_keys(base, recipe)))


def _check_changes(name: str, variant: Masked | Supervised) -> None:
    """Refuse what would make an arm unequal."""
    known = [field.name for field in fields(PretrainRecipe)]
    for key in variant.changes:
        if key in known and key not in CHANGEABLE:
            raise ConfigError(
                f"variants.{name}.changes.{key}: all arms have the same; one with another would be no comparison",
                fix=f"pretrain.{key}=... for all"
                + (", or equal=flops, which gives dear networks fewer steps" if key == "steps" else ""),
            )


def _changed_keys(base: PretrainRecipe, recipe: PretrainRecipe) -> Iterator[str]:
    for field in fields(PretrainRecipe):
        if getattr(base, field.name) != getattr(recipe, field.name):
            yield field.name


def without_copies(arms: tuple[Arm, ...]) -> tuple[tuple[Arm, ...], list[str]]:
    """Leave out arms that are another one by another name, as an ablation of the recipe itself; say which."""
    kept: list[Arm] = []
    notes = []
    for arm in arms:
        twin = next((other for other in kept if replace(other, name=arm.name) == arm), None)
        if twin is None:
            kept.append(arm)
        else:
            notes.append(f"{arm.name} is {twin.name} by another name, and left out")
    return tuple(kept), notes


def with_equal_flops(arms: tuple[Arm, ...], num_classes: int | None) -> tuple[Arm, ...]:
    """Give every pretrained arm as many steps as take the operations of the first one's."""
    first = next((arm for arm in arms if arm.recipe is not None), None)
    if first is None or first.recipe is None:
        return arms
    total = first.recipe.steps * first.flops_per_image(num_classes)
    equal = []
    for arm in arms:
        if arm.recipe is not None and arm is not first:
            steps = max(1, round(total / arm.flops_per_image(num_classes)))
            arm = replace(arm, recipe=replace(arm.recipe, steps=steps))
        equal.append(arm)
    return tuple(equal)


def describe(arm: Arm) -> str:
    """Return an arm in a few words."""
    if arm.recipe is None:
        if arm.kind == SCRATCH:
            return "no pretraining" + (", as many operations in all as with it" if arm.same_flops else "")
        return f"{arm.source}, pretrained elsewhere"
    recipe = arm.recipe
    budget = f"{recipe.steps:,} steps of {recipe.global_batch:,} images"
    return f"{_task_in_words(recipe)}, {budget}{_changes_in_words(arm)}"


def _task_in_words(recipe: PretrainRecipe) -> str:
    task = recipe.task
    if isinstance(task, ClassificationConfig):
        return f"labels, {recipe.vit.name}" if is_resnet(recipe.vit) else "labels"
    own = {key: value for key, value in dump(task.target).items() if key != "kind" and value is not False}
    target = task.target.kind + "".join(f" {key} {value}" for key, value in own.items() if key != "bits" or value != 3)
    mask = task.mask
    kept = 1 - mask.masked - mask.other
    shares = f" ({100 * mask.masked:.0f}/{100 * mask.other:.0f}/{100 * kept:.0f})"
    shown = "" if (mask.masked, mask.other) == (0.8, 0.1) else shares
    return f"{target} of {100 * mask.ratio:g} % {mask.kind} patches{shown}"


def _changes_in_words(arm: Arm) -> str:
    others = [key for key in arm.changed if key != "task"]
    return f"; {', '.join(others)} of its own" if others else ""
