"""What pretraining was worth: the same backbone and fine-tuning from every arm, seed by seed.

Every arm gets the same grid of fine-tuning rates, chosen on held-out labels at the first seed, once per arm and number
of labels. Nothing is repeated that is done: a comparison that was cut off is continued by the same call.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from mpp.config import dump
from mpp.errors import DataError, MppError, Stopped
from mpp.evaluation.arms import Arm, describe
from mpp.evaluation.backbones import SCRATCH, open_backbone
from mpp.evaluation.fairness import budget_warnings, check_leaks, evidence_warnings, result_warnings
from mpp.evaluation.parts import MACHINE, Record, run_parts
from mpp.evaluation.plan import CompareConfig, Part, Plan, make_plan
from mpp.evaluation.statistics import holm, paired_difference, summarise
from mpp.evaluation.verdict import ArmFacts, Comparison, Cost, DataFacts, Row
from mpp.model.encoders import build_encoder
from mpp.redaction import redact
from mpp.shards.indexing import open_any
from mpp.training.backbone import Backbone
from mpp.training.devices import open_accelerator
from mpp.training.runs import FINISHED, Run, settings_hash
from mpp.training.together import from_main

DATA = "data.json"
_NOTHING = Cost(0, 0.0, 0.0)
_FIELD = {"top1": "top1", "mean_per_class": "top1_per_class"}  # of a result, by metric
_Records = dict[Part, Record]


def compare(settings: CompareConfig) -> Comparison:
    """Run what is missing of arms x seeds x labels and return the comparison.

    Raises ``ConfigError`` where the folder belongs to another comparison, ``DataError`` where its shards were
    exchanged or test images are among those learnt from, and the errors of its parts.
    """
    plan = make_plan(settings)  # first: bad input leaves no folder behind
    accelerator = open_accelerator(settings.transfer.precision)
    run: Run | None = None

    def begin() -> tuple[tuple[DataFacts, ...], list[str]]:
        nonlocal run
        if (Path(settings.out) / DATA).exists():
            run = Run(Path(settings.out), settings)
            return _hold_to_data(plan)
        facts, warnings = _look_at_data(plan)  # before there is a folder
        known = {"data": [asdict(one) for one in facts], "warnings": warnings, "backbones": _backbones(plan)}
        run = Run(Path(settings.out), settings)
        run.write(DATA, json.dumps(known, indent=1))
        return facts, warnings

    try:
        data, warnings = from_main(accelerator, begin)
        comparison = _conclude(plan, run_parts(plan), data, warnings)
    except BaseException as error:
        if run is not None:
            failed = isinstance(error, MppError) and not isinstance(error, Stopped)
            run.close("failed" if failed else "interrupted, the same command continues it")
        raise
    if run is not None:
        run.close(FINISHED)
    return comparison


def _look_at_data(plan: Plan) -> tuple[tuple[DataFacts, ...], list[str]]:
    """Return what the shards are, and warnings where test images are among those learnt from."""
    settings = plan.settings
    pretraining, train = open_any(settings.shards, "train"), open_any(settings.labelled_set, "train")
    test = open_any(settings.labelled_set, settings.test_split)
    labels_used = any(arm.kind == "supervised" for arm in plan.arms)
    warnings = check_leaks(test, train, pretraining, labels_used=labels_used)
    return tuple(_facts(plan)), warnings


def _facts(plan: Plan) -> list[DataFacts]:
    settings = plan.settings
    splits = (
        (settings.shards, "train", "pretraining"),
        (settings.labelled_set, "train", "fine-tuning"),
        (settings.labelled_set, settings.test_split, "test"),
    )
    facts = []
    for root, split, role in splits:
        shards = open_any(root, split)
        refused = sum(shard.refused for shard in shards.shards)
        classes = None if shards.classes is None else len(shards.classes)
        facts.append(DataFacts(root, split, role, shards.samples, refused, classes, shards.fingerprint))
    return facts


def _hold_to_data(plan: Plan) -> tuple[tuple[DataFacts, ...], list[str]]:
    """Return what was found at the beginning; raise ``DataError`` where the folders hold other images now."""
    path = Path(plan.settings.out) / DATA
    known = json.loads(path.read_text())
    before = tuple(DataFacts(**facts) for facts in known["data"])
    now = _facts(plan)
    pairs = zip(before, now, strict=True)
    changed = [f"{new.path}/{new.split}" for old, new in pairs if old.fingerprint != new.fingerprint]
    changed += [plan.arm(name).source for name, sha in _backbones(plan).items() if known["backbones"].get(name) != sha]
    if changed:
        raise DataError(
            f"{' and '.join(dict.fromkeys(changed))} changed since {plan.settings.out} was begun",
            fix="the old ones, or out=ANOTHER",
        )
    return before, known["warnings"]


def _backbone(plan: Plan, arm: Arm) -> Backbone:
    """Return the backbone from outside that an arm begins with."""
    transfer = plan.transfer(arm, plan.settings.labels_per_class[0], plan.settings.seeds[0])
    backbone = open_backbone(transfer.backbone, transfer.vit.pool, transfer.image_size)
    assert backbone is not None
    return backbone


def _backbones(plan: Plan) -> dict[str, str]:
    """Return the sha256 of the weights of each backbone from outside, by arm."""
    hashes = {}
    for arm in plan.arms:
        if arm.kind == "backbone":
            digest = hashlib.sha256()
            for name, weight in sorted(_backbone(plan, arm).weights.items()):
                digest.update(name.encode() + weight.contiguous().cpu().numpy().tobytes())
            hashes[arm.name] = digest.hexdigest()
    return hashes


def _conclude(plan: Plan, records: _Records, data: tuple[DataFacts, ...], warnings: list[str]) -> Comparison:
    settings, out = plan.settings, Path(plan.settings.out)
    flops = {arm.name: arm.flops(plan.num_classes) for arm in plan.arms}
    finals = {
        (arm.name, labels): [records[Part("final", arm.name, labels, seed)] for seed in settings.seeds]
        for labels in settings.labels_per_class
        for arm in plan.arms
    }
    machines = sorted({record[MACHINE] for record in records.values() if MACHINE in record})
    environment = json.loads((out / "environment.json").read_text()) | ({"parts ran on": machines} if machines else {})
    return Comparison(
        rows=tuple(_rows(plan, records)),
        against=plan.against,
        arms=tuple(_arm_facts(plan, arm) for arm in plan.arms),
        data=data,
        seeds=settings.seeds,
        metric=settings.transfer.metric,
        warnings=(
            *warnings,
            *budget_warnings(plan.arms, flops, settings.seeds),
            *evidence_warnings(plan.arms, data[0].images, pretrain_per_seed=settings.pretrain_per_seed),
            *result_warnings(finals),
        ),
        notes=plan.notes,
        folder=out,
        settings=redact(dump(settings)),
        settings_sha256=settings_hash(settings),
        environment=environment,
    )


def _rows(plan: Plan, records: _Records) -> list[Row]:
    """Return a row for each number of labels and arm; the p values are corrected for the number of differences."""
    rows = [_row(plan, records, arm, labels) for labels in plan.settings.labels_per_class for arm in plan.arms]
    tested = [place for place, row in enumerate(rows) if row.difference is not None and row.difference.p is not None]
    corrected = holm([rows[place].difference.p for place in tested])  # type: ignore[union-attr, misc]
    for place, p in zip(tested, corrected, strict=True):
        rows[place] = replace(rows[place], p_holm=p)
    return rows


def _row(plan: Plan, records: _Records, arm: Arm, labels: int | None) -> Row:
    settings, headline = plan.settings, _FIELD[plan.settings.transfer.metric]

    def accuracies(name: str) -> tuple[float, ...]:
        return tuple(records[Part("final", name, labels, seed)][headline] for seed in settings.seeds)

    top1, choice = accuracies(arm.name), records[Part("choose", arm.name, labels, settings.seeds[0])]
    is_reference = arm.name == plan.against
    return Row(
        arm=arm.name,
        labels_per_class=labels,
        top1=summarise(top1),
        top1_by_seed=top1,
        difference=None if is_reference else paired_difference(top1, accuracies(plan.against)),
        p_holm=None,
        learning_rate=choice["learning_rate"],
        trials=choice["trials"],
        pretraining=_pretraining(plan, records, arm),
        tuning=_cost([choice]),
        finetuning=_cost([records[Part("final", arm.name, labels, seed)] for seed in settings.seeds]),
    )


def _pretraining(plan: Plan, records: _Records, arm: Arm) -> Cost | None:
    if arm.recipe is not None:
        return _cost([records[Part("pretrain", arm.name, None, seed)] for seed in plan.pretrain_seeds()])
    return _NOTHING if arm.source == SCRATCH else None


def _cost(records: Sequence[Record]) -> Cost:
    """Return the mean cost of some parts."""
    images, flops, seconds = (
        float(np.mean([record[name] for record in records])) for name in ("images_seen", "flops", "seconds")
    )
    return Cost(round(images), flops, round(seconds, 3))


def _arm_facts(plan: Plan, arm: Arm) -> ArmFacts:
    seeds = plan.pretrain_seeds() if arm.recipe is not None else ()
    vit = plan.settings.pretrain.vit if arm.recipe is None else arm.recipe.vit
    if arm.kind == "backbone":
        vit = _backbone(plan, arm).vit
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in build_encoder(vit).parameters())
    return ArmFacts(arm.name, arm.kind, describe(arm), parameters, tuple(plan.run_folder(arm, seed) for seed in seeds))
