"""Probe a frozen backbone on labelled shards: features once, then every probe on every kind of feature."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mpp.config import config, dump
from mpp.errors import ConfigError, DataError
from mpp.evaluation.features import Features, extract
from mpp.evaluation.finetune import TransferConfig, results_file
from mpp.evaluation.frozen import open_frozen
from mpp.evaluation.labels import labelled_shards, read_labels
from mpp.evaluation.probes import fewshot, linear, nearest
from mpp.evaluation.statistics import summarise
from mpp.evaluation.tables import aligned
from mpp.model.vit import VitConfig
from mpp.shards.shardset import ShardSet
from mpp.stream.loader import StreamConfig
from mpp.stream.order import Ints
from mpp.training.devices import leave_together, open_accelerator

Probe = Literal["fewshot", "knn", "linear"]


@config
class ProbeRecipe:
    """Which probes; the defaults are big_vision's few-shot, DINO's neighbours and a linear probe."""

    probes: tuple[Probe, ...] = Field(("fewshot", "knn", "linear"), min_length=1, description="what is measured")
    shots: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 5, 10, 25), min_length=1, description="few-shot: labelled images of each class"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="few-shot: seeds of the images drawn"
    )
    neighbours: int = Field(20, gt=0, description="kNN: how many training images vote")
    temperature: float = Field(0.07, gt=0, description="kNN: a vote weighs exp(cosine / temperature)")
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="linear: L2 beside the mean cross-entropy, chosen on held-out labels",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="linear: share of each class that the choice is made on")


@config
class ProbeConfig(ProbeRecipe):
    """One backbone, one labelled set, every probe."""

    backbone: str = Field(
        description="run folder of mpp pretrain, a backbone.safetensors, scratch, timm:NAME or timm:NAME@FILE"
    )
    shards: str = Field(description="folder that mpp-shard wrote, with labels")
    out: str = Field(description="folder of probes.jsonl; one line a probe is added")
    train_split: str = Field("train", description="split whose labels are used")
    test_split: str = Field("test", description="split to evaluate, every image once")
    vit: VitConfig = Field(VitConfig(), description="for backbone=scratch alone; a backbone file carries its own")
    image_size: tuple[int, int] | None = Field(None, description="height and width, pixels; null: the backbone's own")
    seed: int = Field(0, ge=0, description="seed of scratch weights and of the held-out images")
    batch: int = Field(256, gt=0, description="images of a process at once; changes no result but its last digits")
    stream: StreamConfig = StreamConfig()


@dataclass(frozen=True)
class ProbeResult:
    """One line of probes.jsonl. ``top1`` in percent, the mean of ``top1_by_seed``; ``chosen`` is what was chosen."""

    dataset: str
    origin: str
    feature: str
    probe: str
    top1: float
    sd: float | None
    top1_by_seed: tuple[float, ...]
    train_images: int
    test_images: int
    chosen: dict[str, Any]
    seconds: float


def probe(settings: ProbeConfig) -> list[ProbeResult]:
    """Measure every probe on every kind of feature; append the results to OUT/probes.jsonl.

    All processes compute features; then the first goes on alone and the others get an empty list. Raises
    ``CheckpointError`` for a backbone that is not one, ``DataError`` for shards with too few labels, ``ConfigError``
    where the test split is the train split, ``DiskError`` where OUT cannot be written, all before the first image.
    """
    train, test = _splits(settings)
    num_classes = len(train.classes or ())
    frozen = open_frozen(_as_transfer(settings))
    accelerator = open_accelerator("fp32")
    path = results_file(settings.out, "probes.jsonl")
    fitted, tested = (
        extract(frozen, split, accelerator, batch=settings.batch, stream=settings.stream) for split in (train, test)
    )
    leave_together()  # before the probes, which may take longer than a process waits for another
    if not accelerator.is_main_process:
        return []
    results = []
    for result in run_probes(fitted, tested, num_classes, settings, seed=settings.seed, device=accelerator.device):
        named = ProbeResult(
            dataset=f"{settings.shards}/{settings.test_split}",
            origin=frozen.origin,
            train_images=len(fitted.ids),
            test_images=len(tested.ids),
            **result,
        )
        results.append(named)
        _append(path, {**asdict(named), "settings": dump(settings)})
    return results


def _splits(settings: ProbeConfig) -> tuple[ShardSet, ShardSet]:
    """Open train and test; raise for labels that are too few or shared."""
    if settings.test_split == settings.train_split:
        raise ConfigError(
            f"test_split is train_split, {settings.test_split!r}: a probe would be tested on what it was fitted to",
            fix="test_split=test",
        )
    train, test = (labelled_shards(settings.shards, split) for split in (settings.train_split, settings.test_split))
    check_labels(read_labels(train), len(train.classes or ()), settings)
    return train, test


def _as_transfer(settings: ProbeConfig) -> TransferConfig:
    return TransferConfig(
        backbone=settings.backbone,
        shards=settings.shards,
        out=settings.out,
        vit=settings.vit,
        image_size=settings.image_size,
        seed=settings.seed,
    )


def check_labels(labels: Ints, num_classes: int, recipe: ProbeRecipe) -> None:
    """Raise ``DataError`` where the training labels are too few for a probe that is asked for."""
    counts = np.bincount(labels, minlength=num_classes)
    least, most = int(counts.min()), max(recipe.shots)
    if "fewshot" in recipe.probes and least < most:
        fitting = [shots for shots in recipe.shots if shots <= least]
        raise DataError(
            f"class {counts.argmin()} has {least} labelled images, {most} shots were asked for",
            fix=f"shots={fitting}".replace(" ", "") if fitting else "probes=[knn,linear]",
        )
    if "knn" in recipe.probes and len(labels) < recipe.neighbours:
        raise DataError(
            f"{len(labels)} training images, {recipe.neighbours} neighbours were asked for",
            fix=f"neighbours={len(labels)}",
        )
    if "linear" in recipe.probes and len(recipe.l2) > 1 and (counts == 1).any():
        raise DataError(
            f"class {(counts == 1).argmax()} has one labelled image: none is left beside the held-out one",
            fix="one value of l2, which needs no choice, or probes=[fewshot,knn]",
        )


def run_probes(
    train: Features, test: Features, num_classes: int, recipe: ProbeRecipe, *, seed: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield what is known of each probe on each kind of feature: the fields of a result but for its data's."""
    probes = {"fewshot": _fewshot, "knn": _knn, "linear": _linear}
    for kind, features in train.by_kind.items():
        data = _Data(features, train.labels, test.by_kind[kind], num_classes, seed, device)
        for name in recipe.probes:
            began = time.perf_counter()
            for title, predictions, chosen in probes[name](data, recipe):
                top1 = [100 * float(np.mean(some == test.labels)) for some in predictions]
                summary = summarise(top1)
                yield {
                    "feature": kind,
                    "probe": title,
                    "top1": summary.mean,
                    "sd": summary.sd,
                    "top1_by_seed": tuple(top1),
                    "chosen": chosen,
                    "seconds": round(time.perf_counter() - began, 3),
                }
                began = time.perf_counter()


class _Data(NamedTuple):
    train: NDArray[np.float32]
    labels: Ints
    test: NDArray[np.float32]
    num_classes: int
    seed: int
    device: torch.device


_Found = Iterator[tuple[str, list[Ints], dict[str, Any]]]  # title, predictions by seed, what was chosen


def _fewshot(data: _Data, recipe: ProbeRecipe) -> _Found:
    for shots in recipe.shots:
        drawn = [fewshot(*data[:4], shots=shots, seed=seed) for seed in recipe.seeds]
        yield f"few-shot {shots}", drawn, {}


def _knn(data: _Data, recipe: ProbeRecipe) -> _Found:
    k = recipe.neighbours
    votes = nearest(*data[:4], k=k, temperature=recipe.temperature, device=data.device)
    yield f"kNN {k} weighted", [votes.weighted], {}
    yield f"kNN {k} plain", [votes.plain], {}


def _linear(data: _Data, recipe: ProbeRecipe) -> _Found:
    found = linear(*data[:4], grid=recipe.l2, held_out=recipe.held_out, seed=data.seed, device=data.device)
    yield "linear", [found.predictions], {"l2": found.l2, "held_out_top1": found.held_out_top1}


def table(results: Sequence[ProbeResult]) -> str:
    """Return the results as a Markdown table: a row a probe, a column a kind of feature, top-1 in percent."""
    kinds = list(dict.fromkeys(result.feature for result in results))
    cells = {(result.probe, result.feature): _cell(result) for result in results}
    names = dict.fromkeys(result.probe for result in results)
    return aligned(["top-1 %", *kinds], [[name, *(cells[name, kind] for kind in kinds)] for name in names])


def _cell(result: ProbeResult) -> str:
    if result.sd is None:
        return f"{result.top1:.2f}"
    return f"{result.top1:.2f} (sd {result.sd:.2f} of {len(result.top1_by_seed)} seeds)"


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
