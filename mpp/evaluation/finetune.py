"""Fine-tune a backbone on labelled shards and test it: a new zero D x K head, one recipe for every backbone.

The pretraining head is gone; the learning rate is chosen on a held-out part of the training labels; every test
image is counted once (ViT, section 3.2 and B.1.1).
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpp.config import dump
from mpp.errors import DataError, DiskError, NumericsError
from mpp.evaluation.accuracy import Accuracy, Metric, count_hits
from mpp.evaluation.backbones import SCRATCH, load_vit, open_backbone
from mpp.evaluation.choosing import Choice, Point, best_of, ends, no_choice
from mpp.evaluation.labelled import ready
from mpp.evaluation.labels import check_classes, choose_labels, open_splits, read_labels, split_held_out
from mpp.evaluation.recipe import TransferConfig, check_steps
from mpp.model.encoders import build_encoder
from mpp.model.flops import flops_per_image
from mpp.model.mixing import Mixing
from mpp.model.tasks import Classification, StepOutput, zero_linear
from mpp.model.vit import VitConfig
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import Batch
from mpp.stream.loader import TrainStream, evaluation_batches
from mpp.stream.order import Ints
from mpp.training.computing import images_at_once, set_up
from mpp.training.devices import divide_batch, nearest_divisor, open_accelerator, prepare
from mpp.training.ema import open_average
from mpp.training.loop import Plan, Trainer
from mpp.training.optim import build_optimizer
from mpp.training.progress import StepProgress


class Fitted(NamedTuple):
    """A task that may be tested, the steps it was fine-tuned for, and its loss before the first of them."""

    steps: int
    task: nn.Module
    first_loss: float


@dataclass(frozen=True)
class TransferResult:
    """One line of results.jsonl. Accuracies in percent; ``flops`` and ``images_seen`` of the fine-tuning itself.

    ``steps`` were taken, and ``trials`` made before to choose them and the rate; ``metric`` is the one to quote.
    """

    dataset: str
    origin: str
    seed: int
    recipe: str
    labels_per_class: int | None
    learning_rate: float
    steps: int
    trials: int
    metric: Metric
    top1: float
    top5: float
    top1_per_class: float
    test_images: int
    first_loss: float
    images_seen: int
    flops: float
    seconds: float


def transfer(settings: TransferConfig) -> TransferResult:
    """Choose the learning rate, fine-tune on all chosen labels, test.

    Appends a JSON line with the result and all settings to OUT/results.jsonl. Raises ``CheckpointError`` for a
    backbone that is not one, ``DataError`` for shards without enough labels, ``DiskError`` where OUT cannot be
    written, all before the first step.
    """
    began = time.perf_counter()
    job = Finetuning(settings)
    path = results_file(settings.out, "results.jsonl")
    for note in job.notes if job.accelerator.is_main_process else ():
        print(f"note: {note}", flush=True)
    choice = job.choose()
    if choice.trials and job.accelerator.is_main_process:
        print(f"chosen on held-out labels: rate {choice.learning_rate:g}, {choice.steps} steps", flush=True)
    result = replace(job.final(choice), seconds=round(time.perf_counter() - began, 1))
    if job.accelerator.is_main_process:
        line = {**asdict(result), "choice": asdict(choice), "settings": dump(replace(settings, vit=job.vit))}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{_headline(result)}; added to {path}", flush=True)
    return result


def _headline(result: TransferResult) -> str:
    by_class = f"mean of the classes {result.top1_per_class:.2f} %, " if result.metric == "mean_per_class" else ""
    return f"{by_class}top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} % of {result.test_images} images"


class Finetuning:
    """The data, backbone and accelerator of one transfer. Building it finds whatever would make the transfer fail."""

    def __init__(self, settings: TransferConfig) -> None:
        self.settings = settings
        check_steps(settings)
        self.backbone = open_backbone(settings.backbone, settings.vit.pool, settings.image_size)
        vit = load_vit(settings, self.backbone)
        self.vit = vit.settings
        ready(settings.shards, settings.data)
        self.train, self.test = open_splits(settings.shards, settings.train_split, settings.test_split)
        self.num_classes = len(self.train.classes or ())
        labels = read_labels(self.train)
        drawn = settings.data is not None and settings.data.limit is not None
        self.notes = check_classes(labels, read_labels(self.test), self.train.classes or (), drawn=drawn)
        self.chosen = choose_labels(labels, self.num_classes, settings.labels_per_class, settings.seed)
        self.grid = sorted(set(settings.learning_rates)) or [settings.optimizer.learning_rate]
        self.fitted, self.held_out = self.chosen, self.chosen[:0]
        if len(self.grid) > 1 or settings.evaluate_every:
            self.fitted, self.held_out = split_held_out(self.chosen, labels, settings.held_out, settings.seed)
        self.accelerator = open_accelerator(settings.precision)
        self.fitting = images_at_once(vit, self.accelerator.device, mixing=settings.mixing)
        for ids in (self.fitted, self.chosen):
            self._divide(ids)
        self._steps_taken = 0  # in all fits

    def choose(self) -> Choice:
        """Return the rate, and the number of steps, with the best accuracy on held-out labels.

        Raises ``NumericsError`` where every rate of the grid diverges.
        """
        settings, began = self.settings, time.perf_counter()
        if not len(self.held_out):
            return no_choice(self.grid[0], settings.steps)
        before, scores = self._steps_taken, dict[Point, float]()
        for rate in self.grid:
            try:
                scores |= self._try(rate)
            except NumericsError as error:  # a rate that diverges is a bad rate
                self.accelerator.print(f"rate {rate:g} diverged: {str(error).partition(chr(10))[0]}")
        best = best_of(scores)
        seen = (self._steps_taken - before) * self._divide(self.fitted)[0]
        return Choice(
            learning_rate=best.learning_rate,
            steps=best.steps,
            trials=len(self.grid),
            held_out_top1={str(point): score for point, score in scores.items()},
            images_seen=seen,
            flops=seen * _flops_per_image(self.vit, self.num_classes),
            seconds=round(time.perf_counter() - began, 1),
        )

    def _try(self, rate: float) -> dict[Point, float]:
        """Return the accuracies on held-out labels of one rate."""
        settings, scores = self.settings, dict[Point, float]()
        for fitted in self._fit(self.fitted, rate, f"rate {rate:g}", ends(settings.steps, settings.evaluate_every)):
            accuracy = self._test(fitted.task, self.train, self.held_out)
            scores[Point(rate, fitted.steps)] = accuracy.by(settings.metric)
        return scores

    def final(self, choice: Choice) -> TransferResult:
        """Fine-tune on all chosen labels, up to the chosen step of the same schedule, and test."""
        settings, began = self.settings, time.perf_counter()
        (fitted,) = self._fit(self.chosen, choice.learning_rate, "finetune", [choice.steps])
        accuracy = self._test(fitted.task, self.test, None)
        seen = choice.steps * self._divide(self.chosen)[0]
        return TransferResult(
            dataset=f"{settings.shards}/{settings.test_split}",
            origin=SCRATCH if self.backbone is None else self.backbone.origin,
            seed=settings.seed,
            recipe=settings.optimizer.kind,
            labels_per_class=settings.labels_per_class,
            learning_rate=choice.learning_rate,
            steps=choice.steps,
            trials=choice.trials,
            metric=settings.metric,
            top1=accuracy.top1,
            top5=accuracy.top5,
            top1_per_class=accuracy.top1_per_class,
            test_images=accuracy.images,
            first_loss=fitted.first_loss,
            images_seen=seen,
            flops=seen * _flops_per_image(self.vit, self.num_classes),
            seconds=round(time.perf_counter() - began, 1),
        )

    def flops_per_step(self) -> float:
        """Return the operations of a step of the final fine-tuning, over all processes."""
        return self._divide(self.chosen)[0] * _flops_per_image(self.vit, self.num_classes)

    def _divide(self, ids: Ints) -> tuple[int, int, int]:
        """Return the global batch, the micro-batch and how many make a process's share; few images are one batch.

        The global batch never depends on ``micro_batch``, so neither do results, but for the partners of mixing.
        """
        settings, world = self.settings, self.accelerator.num_processes
        if len(ids) >= settings.global_batch:
            return settings.global_batch, *divide_batch(
                settings.global_batch, settings.micro_batch, world, fitting=self.fitting
            )
        share = len(ids) // world
        if share == 0:
            raise DataError(f"{len(ids)} images to fine-tune on for {world} processes", fix="more labels_per_class")
        most = min(settings.micro_batch or share, share)
        micro = max(size for size in range(1, most + 1) if share % size == 0)
        if settings.micro_batch is None and self.fitting is not None:
            micro = nearest_divisor(share, self.fitting)
        return share * world, micro, share // micro

    def _fit(self, ids: Ints, rate: float, title: str, stops: Sequence[int]) -> Iterator[Fitted]:
        """Fine-tune on ``ids`` and yield what there is after each of so many steps, ascending."""
        settings, accelerator = self.settings, self.accelerator
        batch, micro, accumulate = self._divide(ids)
        accelerator.free_memory()  # it would hold the models of all rates
        torch.manual_seed(settings.seed)
        vit = load_vit(settings, self.backbone)
        head = zero_linear(vit.width, self.num_classes)
        bare = Classification(vit, head, settings.mixing, seed=settings.seed, smoothing=settings.label_smoothing)
        average = open_average(bare, settings.ema, warmup=False, accelerator=accelerator)
        first_losses = _first_loss(bare)
        set_up(bare, settings.compute)
        optimizer = build_optimizer(bare, settings.optimizer)
        task, optimizer = prepare(
            accelerator, bare, optimizer, micro_batch=micro, accumulate=accumulate, clip=settings.clip
        )
        plan = Plan(
            steps=settings.steps,
            accumulate=accumulate,
            learning_rate=rate,
            schedule=settings.schedule,
            clip=settings.clip,
            log_every=max(1, settings.steps // 20),
            seed=settings.seed,
        )
        with (
            closing(self._stream(ids, batch, micro)) as stream,
            StepProgress(title, start=0, steps=stops[-1], shown=accelerator.is_main_process) as progress,
        ):
            trainer = Trainer(task, optimizer, stream, accelerator, plan, average)
            try:
                for start, stop in pairwise([0, *stops]):
                    trainer.run(start, lambda step: None, progress.show, end=stop)
                    trainer.read_judged(None)  # a GPU has told of the steps up to the last log line
                    yield Fitted(stop, task if average is None else average.module, float(first_losses[0]))
            finally:
                self._steps_taken += trainer.done

    def _stream(self, ids: Ints, batch: int, micro: int) -> TrainStream:
        return TrainStream(
            self.train,
            self.settings.view,
            self.vit.image_size,
            seed=self.settings.seed,
            global_batch=batch,
            micro_batch=micro,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            subset=ids,
            settings=self.settings.stream,
        )

    def _test(self, task: nn.Module, shards: ShardSet, subset: Ints | None) -> Accuracy:
        """Return the accuracies of a task on a split or a part of it."""
        model = self.accelerator.unwrap_model(task).eval()
        return count_hits(model, self._evaluation(shards, subset), self.num_classes, self.accelerator)

    def _evaluation(self, shards: ShardSet, subset: Ints | None) -> Iterator[Batch]:
        accelerator, settings = self.accelerator, self.settings
        return evaluation_batches(
            shards,
            settings.view,
            self.vit.image_size,
            batch=settings.micro_batch or 256,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            subset=subset,
            settings=settings.stream,
        )


def _flops_per_image(settings: VitConfig, num_classes: int) -> float:
    with torch.device("meta"):
        vit = build_encoder(settings)
        task = Classification(vit, zero_linear(vit.width, num_classes), Mixing(), seed=0)
    return flops_per_image(task, settings.image_size)


def _first_loss(task: nn.Module) -> list[Tensor]:
    """Return a list that will hold the loss of the task's first batch."""
    losses: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: StepOutput) -> None:
        losses.append(output.loss.detach())
        hook.remove()

    hook = task.register_forward_hook(keep)
    return losses


def results_file(out: str, name: str) -> Path:
    """Return OUT/NAME after making sure that it can be written; raise ``DiskError``."""
    path = Path(out) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}", fix="out=FOLDER that can be written") from error
    return path
