"""Probe a frozen backbone on labelled shards: features once, then every probe on every kind of feature."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mpp.config import config, dump
from mpp.disk import lock_file
from mpp.errors import ConfigError, DataError
from mpp.evaluation.features import Features, extract
from mpp.evaluation.finetune import results_file
from mpp.evaluation.frozen import open_frozen
from mpp.evaluation.labelled import ready
from mpp.evaluation.labels import open_splits, read_labels
from mpp.evaluation.probes import fewshot, linear, nearest
from mpp.evaluation.protocols import LabelledData
from mpp.evaluation.recipe import TransferConfig
from mpp.evaluation.statistics import summarise
from mpp.evaluation.tables import aligned
from mpp.model.vit import VitConfig
from mpp.stream.loader import StreamConfig
from mpp.stream.order import Ints
from mpp.stream.views import Share
from mpp.training.devices import leave_together, open_accelerator
from mpp.training.probe_schedule import ProbeRecipe


@config
class ProbeConfig(ProbeRecipe):
    """One backbone, one labelled set, every probe."""

    backbone: str = Field(
        description="run folder of mpp pretrain, a backbone.safetensors, scratch, timm:NAME or timm:NAME@FILE"
    )
    shards: str = Field(description="folder that mpp-shard wrote, with labels; or where data are written to")
    data: LabelledData | None = Field(
        None, description="labelled dataset that the shards are written from where they are not there yet"
    )
    out: str = Field(description="folder of probes.jsonl: a line a probe, in the place of the same command's before")
    train_split: str = Field("train", description="split whose labels are used")
    test_split: str = Field("test", description="split to evaluate, every image once")
    vit: VitConfig = Field(VitConfig(), description="for backbone=scratch alone; a backbone file carries its own")
    image_size: tuple[int, int] | None = Field(None, description="height and width, pixels; null: the backbone's own")
    crop_fraction: Share | None = Field(
        None, description="share of the side that the view keeps; null: the backbone's own, 0.875 of ours"
    )
    squash: bool = Field(False, description="the view shows that share of both sides: the shape is not kept")
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
    """Measure every probe on every kind of feature; write the results to OUT/probes.jsonl.

    All processes compute features; then the first goes on alone and the others get an empty list. Raises
    ``CheckpointError`` for a backbone that is not one, ``DataError`` for shards with too few labels, ``ConfigError``
    where the test split is the train split, ``DiskError`` where OUT cannot be written, all before the first image.
    """
    ready(settings.shards, settings.data)
    train, test = open_splits(settings.shards, settings.train_split, settings.test_split)
    check_labels(read_labels(train), len(train.classes or ()), settings)
    num_classes = len(train.classes or ())
    frozen = open_frozen(_as_transfer(settings))
    share = settings.crop_fraction or frozen.view.crop_fraction
    frozen = replace(frozen, view=replace(frozen.view, crop_fraction=share, squash=settings.squash))
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
        _record(path, {**asdict(named), "settings": dump(settings)})
    return results


def _as_transfer(settings: ProbeConfig) -> TransferConfig:
    return TransferConfig(
        backbone=settings.backbone,
        shards=settings.shards,
        out=settings.out,
        vit=settings.vit,
        image_size=settings.image_size,
        seed=settings.seed,
    )


def check_labels(labels: Ints, num_classes: int, recipe: ProbeRecipe, prefix: str = "") -> None:
    """Raise ``DataError`` where the training labels are too few for a probe that is asked for.

    ``prefix`` stands before the keys of the recipe in what is advised.
    """
    counts = np.bincount(labels, minlength=num_classes)
    least, most = int(counts.min()), max(recipe.shots)
    if "fewshot" in recipe.probes and least < most:
        fitting = [shots for shots in recipe.shots if shots <= least]
        raise DataError(
            f"class {counts.argmin()} has {least} labelled images, {most} shots were asked for",
            fix=prefix + (f"shots={fitting}".replace(" ", "") if fitting else "probes=[knn,linear]"),
        )
    if "knn" in recipe.probes and len(labels) < recipe.neighbours:
        raise DataError(
            f"{len(labels)} training images, {recipe.neighbours} neighbours were asked for",
            fix=f"{prefix}neighbours={len(labels)}",
        )
    if "linear" in recipe.probes and len(recipe.l2) > 1 and (counts == 1).any():
        raise DataError(
            f"class {(counts == 1).argmax()} has one labelled image: none is left beside the held-out one",
            fix=f"one value of {prefix}l2, which needs no choice, or {prefix}probes=[fewshot,knn]",
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


_FREE = {"out", "stream", "batch"}  # settings that change no result


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


def _record(path: Path, line: dict[str, Any]) -> None:
    """Write a line, in the place of the one that the same command left before, and of half a line of a killed one."""
    with _alone(path):  # others may probe into the same OUT
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [old for old in lines if _is_whole(old) and _identity(json.loads(old)) != _identity(line)]
        if len(kept) < len(lines):
            temporary = path.with_name(f"{path.name}.writing")
            temporary.write_text("".join(kept))
            temporary.replace(path)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _alone(path: Path) -> AbstractContextManager[Any]:
    """Wait for the file ``path``; a file system that cannot lock costs no results."""
    while True:
        try:
            return lock_file(path.with_name(f".{path.name}.lock"))
        except BlockingIOError:
            time.sleep(0.01)
        except ConfigError:
            return nullcontext()


def _is_whole(line: str) -> bool:
    try:
        return line.endswith("\n") and "settings" in json.loads(line)
    except ValueError:
        return False


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return what is the same in two lines of the same command, wherever its folder is and however it was carried out.

    As JSON has it.
    """
    settings = {name: value for name, value in line["settings"].items() if name not in _FREE}
    return line["feature"], line["probe"], json.dumps(settings, sort_keys=True)
