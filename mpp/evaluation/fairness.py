"""What would make a comparison unfair: test images that were learnt from, budgets and trials that differ.

What decides against a comparison is refused; what a reader must weigh is a warning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mpp.errors import ConfigError, DataError
from mpp.evaluation.arms import Arm
from mpp.shards.overlap import shared_images
from mpp.shards.shardset import ShardSet

MOST_LEAKED: Final = 0.01  # of the test images; CIFAR-10 itself, say, has a few copies
_NEAR: Final = 1.1  # budgets closer than this are called equal
_FEW_SEEDS: Final = 3


def check_leaks(test: ShardSet, train: ShardSet, pretraining: ShardSet, *, labels_used: bool) -> list[str]:
    """Return warnings about test images, byte for byte, among those learnt from; refuse where these are many.

    ``labels_used``: an arm is pretrained on the labels of ``pretraining``. Raises ``ConfigError`` where test is train,
    ``DataError`` where more than ``MOST_LEAKED`` of the test images were seen with their labels.
    """
    if test.fingerprint in {train.fingerprint, pretraining.fingerprint}:
        raise ConfigError(
            f"the test split {test.split!r} is what is trained on: its accuracy would say nothing",
            fix="test_split=NAME of images that were held out",
        )
    warnings = []
    places = {train.fingerprint: (train, "fine-tuning", True)}
    places.setdefault(pretraining.fingerprint, (pretraining, "pretraining", labels_used))
    for shards, stage, with_labels in places.values():
        shared = shared_images(test, shards)
        count = shared.count
        if not count:
            continue
        share = count / test.samples
        what = f"{count:,} of {test.samples:,} test images ({100 * share:.2g} %) are also among those of {stage}"
        examples = ", ".join(name for name, _ in shared.examples)
        named = f"{'with' if with_labels else 'without'} labels, such as {examples}"
        if with_labels and share > MOST_LEAKED:
            raise DataError(f"{what}, {named}", fix="mpp-shard with dedupe=exact, which keeps the copy in test")
        warnings.append(f"{what}, {named}")
    return warnings


def budget_warnings(arms: Sequence[Arm], flops: Mapping[str, float], seeds: Sequence[int]) -> list[str]:
    """Return what is unequal by the settings: networks, views, recipes, and operations of pretraining by arm."""
    warnings = []
    pretrained = [arm for arm in arms if arm.recipe is not None]
    for arm in pretrained:
        for key in arm.changed:
            if key != "task":
                warnings.append(f"the arm {arm.name} differs from the others in its {key}, not in its task alone")
        first, own = flops[pretrained[0].name], flops[arm.name]
        if max(first, own) > _NEAR * min(first, own):
            warnings.append(
                f"pretraining of {arm.name} takes {own / first:.2f} times the operations of {pretrained[0].name}"
            )
    for arm in arms:
        if arm.kind == "backbone":
            warnings.append(f"what the pretraining of {arm.name} ({arm.source}) cost and saw is not known here")
    if len(seeds) < _FEW_SEEDS:
        warnings.append(f"{len(seeds)} seed(s): intervals of fewer than {_FEW_SEEDS} are wide or there is none")
    return warnings


def evidence_warnings(arms: Sequence[Arm], pretrain_images: int, *, pretrain_per_seed: bool) -> list[str]:
    """Return what the intervals do not hold and what labels supervised pretraining had beyond those of fine-tuning."""
    warnings = []
    if any(arm.recipe is not None for arm in arms) and not pretrain_per_seed:
        warnings.append(
            "each arm was pretrained once: intervals hold the variation of fine-tuning (labels drawn, order, views), "
            "not of pretraining"
        )
    if any(arm.kind == "supervised" for arm in arms):
        warnings.append(
            f"supervised pretraining saw the labels of all {pretrain_images:,} images, also those held out for its "
            "rate and those that fine-tuning with few labels does without"
        )
    return warnings


def result_warnings(results: Mapping[tuple[str, int | None], Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return what is unequal in finished results, by arm and labels: trials, test images, operations, machines.

    Numbers are unequal where parts were copied or mended, operations of one image where a network is another one.
    """
    warnings = []
    everything = [line for lines in results.values() for line in lines]
    machines = sorted({line["machine"] for line in everything if "machine" in line})
    if len(machines) > 1:
        warnings.append(f"parts ran on unlike machines, {' and '.join(machines)}: seconds do not compare")
    flops = {arm: lines[0]["flops"] / lines[0]["images_seen"] for (arm, _), lines in results.items()}
    first = next(iter(flops), "")
    for arm, own in flops.items():
        if max(own, flops[first]) > _NEAR * min(own, flops[first]):
            warnings.append(
                f"fine-tuning of {arm} takes {own / flops[first]:.2f} times the operations of {first}, an image"
            )
    for labels in dict.fromkeys(labels for _, labels in results):
        for name, words in (
            ("trials", "trials of the grid"),
            ("test_images", "test images"),
        ):
            values = {arm: {line[name] for line in lines} for (arm, own), lines in results.items() if own == labels}
            if len(set().union(*values.values())) > 1:
                listed = ", ".join(f"{arm} {'/'.join(map(str, sorted(found)))}" for arm, found in values.items())
                warnings.append(f"{words} differ with {labels or 'all'} labels per class: {listed}")
    return warnings
