"""The settings of a comparison and what follows from them, before hours are spent: its arms, its parts, all recipes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.evaluation.arms import Arm, Variant, resolve_arms, with_equal_flops, without_copies
from mpp.evaluation.backbones import SCRATCH
from mpp.evaluation.finetune import Finetuning
from mpp.evaluation.labelled import ready
from mpp.evaluation.labels import open_splits
from mpp.evaluation.outside import timm_source
from mpp.evaluation.recipe import TransferConfig, TransferRecipe
from mpp.model.families import VitConfig
from mpp.shards.engines import Slurm
from mpp.shards.indexing import open_any
from mpp.shards.shardset import ShardSet
from mpp.training.recipe import PretrainConfig, PretrainRecipe
from mpp.training.trackers import check_trackers

Budget = Literal["steps", "flops"]


@config
class CompareConfig:
    """A comparison: the arms, how often, with how many labels, and the two recipes all arms share."""

    shards: str = Field(description="folder that mpp-shard wrote; its train split is pretrained on")
    labelled: str | None = Field(None, description="labelled shards to fine-tune and test on; null: the same")
    out: str = Field(description="folder of the comparison; the same command again continues it")
    arms: tuple[str, ...] = Field(
        ("masked", "supervised", "scratch"), min_length=1, description="what is compared: these names, or variants"
    )
    variants: dict[str, Variant] = Field(
        {}, description="more arms by name: {kind: masked | supervised, changes: {...}}, {kind: backbone, source: ...}"
    )
    against: str | None = Field(None, description="arm that differences are to; null: scratch, or the last one")
    equal: Budget = Field("steps", description="what pretrained arms have in common: steps, or operations")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="seeds of the fine-tuning runs"
    )
    pretrain_per_seed: bool = Field(False, description="pretrain anew for every seed; otherwise once, with the first")
    labels_per_class: tuple[Annotated[int, Field(gt=0)] | None, ...] = Field(
        (None,), min_length=1, description="labelled images of each class; null: all"
    )
    test_split: str = Field("test", description="split to evaluate, every image once")
    parallel: int = Field(1, gt=0, description="parts at the same time on this machine, which share its CPUs")
    engine: Slurm | None = Field(None, description="run the parts as jobs of a cluster instead")
    pretrain: PretrainRecipe = PretrainRecipe()
    transfer: TransferRecipe = TransferRecipe()

    @property
    def labelled_set(self) -> str:
        """Return the folder of the labelled shards."""
        return self.labelled or self.shards


@dataclass(frozen=True)
class Part:
    """One piece of work. ``labels`` are those of each class, None for all; neither matters to pretraining."""

    stage: Literal["pretrain", "choose", "final"]
    arm: str
    labels: int | None
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its record and its log."""
        labels = "" if self.stage == "pretrain" else f"-{'all' if self.labels is None else self.labels}labels"
        return f"{self.stage}-{self.arm}{labels}" + ("" if self.stage == "choose" else f"-seed{self.seed}")


@dataclass(frozen=True)
class Plan:
    """What a comparison consists of; ``notes`` say what was left out."""

    settings: CompareConfig
    arms: tuple[Arm, ...]
    against: str
    notes: tuple[str, ...]
    num_classes: int | None  # of the labels that pretraining sees

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def parts(self) -> Iterator[list[Part]]:
        """Yield the parts stage by stage; those of a stage do not need each other."""
        settings = self.settings
        yield [
            Part("pretrain", arm.name, None, seed)
            for arm in self.arms
            if arm.recipe is not None
            for seed in self.pretrain_seeds()
        ]
        pairs = [(arm.name, labels) for labels in settings.labels_per_class for arm in self.arms]
        yield [Part("choose", arm, labels, settings.seeds[0]) for arm, labels in pairs]
        yield [Part("final", arm, labels, seed) for arm, labels in pairs for seed in settings.seeds]

    def pretrain_seeds(self) -> tuple[int, ...]:
        """Return the seeds of pretraining runs."""
        return self.settings.seeds if self.settings.pretrain_per_seed else self.settings.seeds[:1]

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a pretraining run."""
        return Path(self.settings.out) / "pretrain" / f"{arm.name}-seed{seed}"

    def pretraining(self, arm: Arm, seed: int) -> PretrainConfig:
        """Return the settings of a pretraining run."""
        assert arm.recipe is not None
        values = {**_values(arm.recipe), "seed": seed}
        return PretrainConfig(shards=self.settings.shards, out=str(self.run_folder(arm, seed)), **values)

    def transfer(self, arm: Arm, labels: int | None, seed: int) -> TransferConfig:
        """Return the settings of a fine-tuning."""
        settings, pretrain_seed = self.settings, seed if self.settings.pretrain_per_seed else self.settings.seeds[0]
        recipe, vit = settings.transfer, VitConfig()  # a backbone carries its own
        if arm.source == SCRATCH:
            vit = settings.pretrain.vit
        elif timm_source(arm.source) is not None:  # it is made for any size and pooling
            vit = replace(vit, pool=settings.pretrain.vit.pool)
            recipe = replace(recipe, image_size=recipe.image_size or settings.pretrain.vit.image_size)
        if arm.same_flops:
            recipe = replace(recipe, steps=self._steps_of_same_flops(arm, labels, seed))
        return TransferConfig(
            backbone=arm.source or str(self.run_folder(arm, pretrain_seed)),
            shards=settings.labelled_set,
            out=settings.out,
            test_split=settings.test_split,
            vit=vit,
            labels_per_class=labels,
            seed=seed,
            **_values(recipe),
        )

    def _steps_of_same_flops(self, arm: Arm, labels: int | None, seed: int) -> int:
        """Return the steps of fine-tuning that take what pretraining and fine-tuning of the first such arm take."""
        first = next(other for other in self.arms if other.recipe is not None)
        usual = Finetuning(self.transfer(replace(arm, same_flops=False), labels, seed))
        step = usual.flops_per_step()
        return round(self.settings.transfer.steps + first.flops(self.num_classes) / step)


def make_plan(settings: CompareConfig) -> Plan:
    """Return what the settings mean; raise for whatever would otherwise fail after hours."""
    for name in ("seeds", "arms", "labels_per_class"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"{name} {list(values)} repeat themselves: the same run twice is no evidence")
    if settings.pretrain.precision != settings.transfer.precision:
        raise ConfigError(
            f"pretrain.precision is {settings.pretrain.precision}, transfer.precision {settings.transfer.precision}",
            fix="the same for both",
        )
    arms, copies = without_copies(resolve_arms(settings.arms, settings.variants, settings.pretrain))
    ready(settings.labelled_set, settings.transfer.data)
    shards = open_any(settings.shards, "train")
    arms, notes = _possible(arms, shards)
    num_classes = None if shards.classes is None else len(shards.classes)
    if settings.equal == "flops":
        arms = with_equal_flops(arms, num_classes)
    for arm in arms:
        if arm.recipe is not None:
            _check_recipe(settings, arm.recipe)
    if any(arm.same_flops for arm in arms) and not any(arm.recipe for arm in arms):
        raise ConfigError("same_flops: there is no pretrained arm to be equal to", fix="arms=[masked,...]")
    plan = Plan(settings, arms, _against(settings, arms), (*copies, *notes), num_classes)
    scratch = next((arm for arm in arms if arm.kind == SCRATCH), None) or Arm(SCRATCH, SCRATCH, None)
    for labels in settings.labels_per_class:
        Finetuning(plan.transfer(replace(scratch, same_flops=False), labels, settings.seeds[0]))
    for arm in arms:
        if arm.kind == "backbone":
            Finetuning(plan.transfer(arm, settings.labels_per_class[0], settings.seeds[0]))
    return plan


def _check_recipe(settings: CompareConfig, recipe: PretrainRecipe) -> None:
    """Raise for what a pretraining would be refused for when its turn comes."""
    recipe.schedule.check(recipe.steps)
    check_trackers(recipe.tracker)
    if recipe.ema is not None:
        raise ConfigError(
            "pretrain.ema: a comparison fine-tunes the last weights, not their average", fix="pretrain.ema=null"
        )
    if recipe.probe.every is not None:
        open_splits(recipe.probe.shards or settings.shards, recipe.probe.train_split, recipe.probe.test_split)


def _possible(arms: tuple[Arm, ...], shards: ShardSet) -> tuple[tuple[Arm, ...], list[str]]:
    """Leave out the arms that need labels where the shards carry none."""
    supervised = [arm.name for arm in arms if arm.kind == "supervised"]
    if not supervised:
        return arms, []
    if shards.classes is not None:
        return arms, []
    note = f"{', '.join(supervised)}: supervised pretraining is left out: {shards.root} carries no labels"
    rest = tuple(arm for arm in arms if arm.kind != "supervised")
    if not rest:
        raise DataError(f"{note}, and no other arm is left", fix="arms=[masked,scratch]")
    return rest, [note]


def _against(settings: CompareConfig, arms: tuple[Arm, ...]) -> str:
    names = [arm.name for arm in arms]
    if settings.against is not None and settings.against not in names:
        raise ConfigError(
            f"against: {settings.against!r} is none of the arms {', '.join(names)}", fix=f"against={names[0]}"
        )
    return settings.against or (SCRATCH if SCRATCH in names else names[-1])


def _values(recipe: Any) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}
