"""What pretraining was worth: the same backbone and fine-tuning from every arm, seed by seed.

Arms: ``masked`` and ``supervised`` pretraining on the same shards, steps, views and rate, and ``scratch``. Every arm
gets the same grid of fine-tuning rates, chosen on held-out labels at the first seed, once per arm and number of
labels. Finished parts are lines of results.jsonl and are not repeated.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.evaluation.finetune import SCRATCH, Finetuning, TransferConfig, TransferRecipe
from mpp.evaluation.live import open_live_probe
from mpp.evaluation.statistics import Difference, Summary, paired_difference, summarise
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig, is_resnet
from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig
from mpp.shards.indexing import open_any
from mpp.training.devices import open_accelerator
from mpp.training.pretraining import pretrain
from mpp.training.recipe import PretrainConfig, PretrainRecipe
from mpp.training.runs import FINISHED, Run
from mpp.training.together import from_main

Arm = Literal["masked", "supervised", "scratch"]


@config
class CompareConfig:
    """A comparison: the arms, how often, with how many labels, and the two recipes all arms share."""

    shards: str = Field(description="folder that mpp-shard wrote; its train split is pretrained on")
    labelled: str | None = Field(None, description="labelled shards to fine-tune and test on; null: the same")
    out: str = Field(description="folder of the comparison; the same command again continues it")
    arms: tuple[Arm, ...] = Field(
        ("masked", "supervised", "scratch"), min_length=1, description="what is compared; differences are to scratch"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="seeds of the fine-tuning runs"
    )
    pretrain_per_seed: bool = Field(False, description="pretrain anew for every seed; otherwise once, with the first")
    labels_per_class: tuple[Annotated[int, Field(gt=0)] | None, ...] = Field(
        (None,), min_length=1, description="labelled images of each class; null: all"
    )
    test_split: str = Field("test", description="split to evaluate, every image once")
    supervised_vit: VitConfig | None = Field(
        None, description="another network for the supervised arm, such as a ResNet; null: that of pretrain"
    )
    pretrain: PretrainRecipe = PretrainRecipe()
    transfer: TransferRecipe = TransferRecipe()


@dataclass(frozen=True)
class Row:
    """One arm at one number of labels: accuracies by seed and what they say."""

    arm: Arm
    labels_per_class: int | None
    top1: Summary
    difference: Difference | None
    learning_rate: float
    pretrain_images: int
    finetune_images: int


@dataclass(frozen=True)
class Comparison:
    """All rows, in the order of labels and arms, what a reader must know of them, and the folders of pretraining."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    runs: tuple[Path, ...]


def compare(settings: CompareConfig) -> Comparison:
    """Run what is missing of arms x seeds x labels and return the comparison.

    Raises ``ConfigError`` where the folder belongs to another comparison, ``DataError`` where its shards were
    exchanged, and the errors of its parts.
    """
    arms, notes = _possible_arms(settings)  # first: bad input leaves no folder behind
    accelerator = open_accelerator(settings.transfer.precision)
    run: Run | None = None

    def begin() -> None:
        nonlocal run
        run = Run(Path(settings.out), settings)

    from_main(accelerator, begin)
    try:
        comparison = _Parts(settings, arms, notes, accelerator.is_main_process).finish()
    except BaseException:
        if run is not None:
            run.close("interrupted, the same command continues it")
        raise
    if run is not None:
        run.close(FINISHED)
    return comparison


def _possible_arms(settings: CompareConfig) -> tuple[tuple[Arm, ...], list[str]]:
    """Return the arms that the shards allow and notes on that; raise for whatever would fail after hours."""
    for name in ("seeds", "arms", "labels_per_class"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"{name} {list(values)} repeat themselves: the same run twice is no evidence")
    if "masked" in settings.arms and not isinstance(settings.pretrain.task, MaskedPatchesConfig):
        raise ConfigError(
            f"pretrain.task.kind is {settings.pretrain.task.kind}, the masked arm needs masked_patches",
            fix="pretrain.task.kind=masked_patches, or arms without masked",
        )
    if "masked" in settings.arms and is_resnet(settings.pretrain.vit):
        raise ConfigError(
            f"pretrain.vit.name: {settings.pretrain.vit.name} has no patch tokens, the masked arm needs them",
            fix="arms without masked, or supervised_vit for a ResNet in the supervised arm alone",
        )
    if settings.pretrain.precision != settings.transfer.precision:
        raise ConfigError(
            f"pretrain.precision is {settings.pretrain.precision}, transfer.precision {settings.transfer.precision}",
            fix="the same for both",
        )
    for labels in settings.labels_per_class:
        Finetuning(_transfer_config(settings, SCRATCH, labels, settings.seeds[0]))
    shards = open_any(settings.shards, "train")
    if "supervised" not in settings.arms:
        return settings.arms, []
    notes = []
    if settings.supervised_vit is not None:
        with torch.device("meta"):
            build_encoder(settings.supervised_vit)
        notes.append(f"the supervised arm is another network, {settings.supervised_vit.name}, than the others")
    if shards.classes is not None:
        seen = f"supervised pretraining saw the labels of all {shards.samples:,} images"
        return settings.arms, [*notes, f"{seen}, also those held out for its rate"]
    note = f"supervised pretraining is left out: {settings.shards} carries no labels"
    rest = tuple(arm for arm in settings.arms if arm != "supervised")
    if not rest:
        raise DataError(f"{note}, and no other arm is left", fix="arms=[masked,scratch]")
    return rest, [note]


def _run_folder(settings: CompareConfig, arm: Arm, seed: int) -> Path:
    return Path(settings.out) / "pretrain" / f"{arm}-seed{seed}"


def _transfer_config(settings: CompareConfig, arm: Arm, labels: int | None, seed: int) -> TransferConfig:
    pretrain_seed = seed if settings.pretrain_per_seed else settings.seeds[0]
    return TransferConfig(
        backbone=SCRATCH if arm == SCRATCH else str(_run_folder(settings, arm, pretrain_seed)),
        shards=settings.labelled or settings.shards,
        out=settings.out,
        test_split=settings.test_split,
        vit=settings.pretrain.vit,
        labels_per_class=labels,
        seed=seed,
        **_values(settings.transfer),
    )


class _Parts:
    """The parts of a comparison, finished ones read from results.jsonl by their key."""

    def __init__(self, settings: CompareConfig, arms: tuple[Arm, ...], notes: list[str], is_main: bool) -> None:
        self.settings, self.arms, self.notes, self.is_main = settings, arms, notes, is_main
        self.out = Path(settings.out)
        self.done = _read_records(self.out / "results.jsonl", mend=is_main)
        self._hold_to_shards()

    def finish(self) -> Comparison:
        """Run the missing parts, cheapest order: pretraining first, then every transfer."""
        settings = self.settings
        pretrain_seeds = settings.seeds if settings.pretrain_per_seed else settings.seeds[:1]
        pretrained: list[tuple[Arm, int]] = [
            (arm, seed) for arm in self.arms if arm != SCRATCH for seed in pretrain_seeds
        ]
        for arm, seed in pretrained:
            self._pretrain(arm, seed)
        for labels in settings.labels_per_class:
            for arm in self.arms:
                for seed in settings.seeds:
                    self._transfer(arm, labels, seed)
        rows = tuple(self._row(arm, labels) for labels in settings.labels_per_class for arm in self.arms)
        if pretrained and not settings.pretrain_per_seed:
            self.notes.append(
                "intervals hold the variation of fine-tuning (labels drawn, order, views), not of pretraining"
            )
        runs = tuple(_run_folder(settings, arm, seed) for arm, seed in pretrained)
        return Comparison(rows, tuple(self.notes), runs)

    def _hold_to_shards(self) -> None:
        """Raise ``DataError`` where finished parts belong to other images in the same folders."""
        settings = self.settings
        labelled = settings.labelled or settings.shards
        sets = {(settings.shards, "train"), (labelled, "train"), (labelled, settings.test_split)}
        now = {f"{root}/{split}": open_any(root, split).fingerprint for root, split in sorted(sets)}
        if "shards" not in self.done:
            self._record("shards", now)
        changed = [name for name in now if self.done["shards"].get(name) != now[name]]
        if changed:
            raise DataError(
                f"{' and '.join(changed)} changed since {self.out} was begun", fix="the old shards, or out=ANOTHER"
            )

    def _pretrain(self, arm: Arm, seed: int) -> None:
        recipe = self.settings.pretrain
        values = _values(recipe) | {"seed": seed}
        if arm == "supervised":  # it differs in its task alone, unless another network is asked for
            values |= {"task": ClassificationConfig(), "vit": self.settings.supervised_vit or recipe.vit}
        out = str(_run_folder(self.settings, arm, seed))
        pretrain(PretrainConfig(shards=self.settings.shards, out=out, **values), open_live_probe)

    def _transfer(self, arm: Arm, labels: int | None, seed: int) -> None:
        settings = self.settings
        rate_key, key = f"rate {arm} {labels}", f"result {arm} {labels} {seed}"
        if key in self.done:
            return
        if rate_key not in self.done:
            first = Finetuning(_transfer_config(settings, arm, labels, settings.seeds[0]))
            self._record(rate_key, {"learning_rate": first.choose_learning_rate()})
        if self.is_main:
            print(f"fine-tuning: {arm}, {labels or 'all'} labels per class, seed {seed}", flush=True)
        result = Finetuning(_transfer_config(settings, arm, labels, seed)).final(self.done[rate_key]["learning_rate"])
        self._record(key, asdict(result))

    def _record(self, key: str, value: dict[str, Any]) -> None:
        self.done[key] = value
        if self.is_main:
            with (self.out / "results.jsonl").open("a") as file:
                file.write(json.dumps({"part": key, **value}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _row(self, arm: Arm, labels: int | None) -> Row:
        settings = self.settings
        top1 = self._top1(arm, labels)
        against = (
            None if arm == SCRATCH or SCRATCH not in self.arms else paired_difference(top1, self._top1(SCRATCH, labels))
        )
        recipe = settings.pretrain
        return Row(
            arm=arm,
            labels_per_class=labels,
            top1=summarise(top1),
            difference=against,
            learning_rate=self.done[f"rate {arm} {labels}"]["learning_rate"],
            pretrain_images=0 if arm == SCRATCH else recipe.steps * recipe.global_batch,
            finetune_images=self.done[f"result {arm} {labels} {settings.seeds[0]}"]["images_seen"],
        )

    def _top1(self, arm: Arm, labels: int | None) -> list[float]:
        return [self.done[f"result {arm} {labels} {seed}"]["top1"] for seed in self.settings.seeds]


def _values(recipe: Any) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}


def _read_records(path: Path, *, mend: bool) -> dict[str, dict[str, Any]]:
    """Read finished parts; a half-written last line of a killed comparison is cut off and its part repeated."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content and mend:
        os.truncate(path, len(whole))
    records = [json.loads(line) for line in whole.splitlines()]
    return {record.pop("part"): record for record in records}
