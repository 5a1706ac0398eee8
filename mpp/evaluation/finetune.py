"""Fine-tune a backbone on labelled shards and test it: a new zero D x K head, one recipe for every backbone.

The pretraining head is gone; the learning rate is chosen on a held-out part of the training labels; every test
image is counted once (ViT, section 3.2 and B.1.1).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mpp.config import config
from mpp.errors import CheckpointError, DataError
from mpp.model.tasks import Classification, zero_linear
from mpp.model.vit import Interpolation, Vit, VitConfig, resize_positions
from mpp.shards.shardset import ShardSet, open_shards
from mpp.stream.loader import Batch, TrainStream, evaluation_batches
from mpp.stream.order import permutation
from mpp.stream.reader import ShardReader
from mpp.stream.views import ViewConfig
from mpp.training.checkpoint import load_backbone
from mpp.training.devices import Precision, divide_batch, open_accelerator, prepare
from mpp.training.loop import Plan, Trainer, Values, to_device
from mpp.training.optim import OptimizerConfig, Schedule, Sgd, build_optimizer
from mpp.training.progress import StepProgress

SCRATCH = "scratch"
Ids = npt.NDArray[np.int64]


@config
class TransferRecipe:
    """How a backbone is fine-tuned; the same for every backbone that is compared."""

    view: ViewConfig = ViewConfig()
    image_size: tuple[int, int] | None = Field(None, description="height and width, pixels; null: as pretrained")
    interpolation: Interpolation = Field(
        "bicubic", description="of position embeddings: bicubic as timm, bilinear as the authors"
    )
    optimizer: OptimizerConfig = Sgd()
    learning_rates: tuple[float, ...] = Field(
        (), description="grid to choose from on held-out labels; empty: the optimizer's"
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the training labels of each class that the choice is made on"
    )
    schedule: Schedule = Schedule()
    steps: int = Field(500, gt=0, description="optimizer steps")
    global_batch: int = Field(512, gt=0, description="images per step, over all processes; at most all of them")
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass of a process; null: no accumulation"
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Precision = Field("auto", description="auto: bf16 on a GPU, fp32 on a CPU")
    workers: int = Field(4, ge=0, description="data-loading processes per process; 0: none")


@config
class TransferConfig(TransferRecipe):
    """One transfer: which backbone, which labelled shards, how many labels."""

    backbone: str = Field(description="run folder of mpp pretrain, a backbone.safetensors, or scratch")
    shards: str = Field(description="folder that mpp-shard wrote, with labels")
    out: str = Field(description="folder of results.jsonl; one line is added")
    train_split: str = Field("train", description="split to fine-tune on")
    test_split: str = Field("test", description="split to evaluate, every image once")
    vit: VitConfig = Field(VitConfig(), description="for backbone=scratch alone; a backbone file carries its own")
    labels_per_class: int | None = Field(None, gt=0, description="labelled images of each class; null: all")
    seed: int = Field(0, ge=0, description="seed of the subset, the order and the views")


@dataclass(frozen=True)
class TransferResult:
    """One line of results.jsonl. Accuracies in percent; ``flops`` and ``images_seen`` of the fine-tuning itself."""

    dataset: str
    origin: str
    seed: int
    recipe: str
    labels_per_class: int | None
    learning_rate: float
    top1: float
    top5: float
    test_images: int
    first_loss: float
    images_seen: int
    flops: float
    seconds: float


def transfer(settings: TransferConfig) -> TransferResult:
    """Choose the learning rate, fine-tune on all chosen labels, test; append one JSON line to OUT/results.jsonl.

    Raises ``CheckpointError`` for a backbone that is not one, ``DataError`` for shards without enough labels.
    """
    began = time.perf_counter()
    job = Finetuning(settings)
    rate = job.choose_learning_rate()
    result = job.final(rate)
    result = replace(result, seconds=round(time.perf_counter() - began, 1))
    if job.accelerator.is_main_process:
        path = Path(settings.out) / "results.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(
            f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} % of {result.test_images} images; added to {path}",
            flush=True,
        )
    return result


class Finetuning:
    """The data, backbone and accelerator of one transfer."""

    def __init__(self, settings: TransferConfig) -> None:
        self.settings = settings
        self.train = _labelled(settings.shards, settings.train_split)
        self.test = _labelled(settings.shards, settings.test_split)
        assert self.train.classes is not None
        if self.train.classes != self.test.classes:
            raise DataError(
                f"{settings.shards}: the splits {settings.train_split} and {settings.test_split} do not have the same classes"
            )
        self.num_classes = len(self.train.classes)
        labels = ShardReader(self.train).labels()
        self.chosen = choose_labels(labels, self.num_classes, settings.labels_per_class, settings.seed)
        self.labels = labels
        self.origin = load_origin(settings.backbone)
        self.accelerator = open_accelerator(settings.precision)

    def choose_learning_rate(self) -> float:
        """Return the rate of the grid with the best accuracy on held-out labels; a tie goes to the smaller rate."""
        grid = sorted(self.settings.learning_rates) or [self.settings.optimizer.learning_rate]
        if len(grid) == 1:
            return grid[0]
        fit, held = split_held_out(self.chosen, self.labels, self.settings.held_out, self.settings.seed)
        scores = []
        for rate in grid:
            task, _ = self._fit(fit, rate, f"rate {rate:g}")
            scores.append(self._test(task, self.train, held)[0])
        return grid[int(np.argmax(scores))]

    def final(self, rate: float) -> TransferResult:
        """Fine-tune on all chosen labels at ``rate`` and test."""
        settings, began = self.settings, time.perf_counter()
        task, losses = self._fit(self.chosen, rate, "finetune")
        top1, top5, count = self._test(task, self.test, None)
        seen = settings.steps * self._batch(self.chosen)
        return TransferResult(
            dataset=f"{settings.shards}/{settings.test_split}",
            origin=self.origin,
            seed=settings.seed,
            recipe=settings.optimizer.kind,
            labels_per_class=settings.labels_per_class,
            learning_rate=rate,
            top1=top1,
            top5=top5,
            test_images=count,
            first_loss=losses[0],
            images_seen=seen,
            flops=seen * flops_per_image(self.accelerator.unwrap_model(task)),
            seconds=round(time.perf_counter() - began, 1),
        )

    def _batch(self, ids: Ids) -> int:
        world = self.accelerator.num_processes
        return min(self.settings.global_batch, len(ids) // world * world)

    def _fit(self, ids: Ids, rate: float, title: str) -> tuple[nn.Module, list[float]]:
        settings, accelerator = self.settings, self.accelerator
        batch = self._batch(ids)
        micro, accumulate = divide_batch(batch, settings.micro_batch, accelerator.num_processes)
        torch.manual_seed(settings.seed)
        vit = load_vit(settings)
        bare = Classification(vit, zero_linear(vit.width, self.num_classes))
        optimizer = build_optimizer(bare, settings.optimizer)
        task, optimizer = prepare(
            accelerator, bare, optimizer, micro_batch=micro, accumulate=accumulate, clip=settings.clip
        )
        stream = TrainStream(
            self.train,
            settings.view,
            vit.settings.image_size,
            seed=settings.seed,
            global_batch=batch,
            micro_batch=micro,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=settings.workers,
            start_step=0,
            subset=ids,
            need_labels=True,
        )
        plan = Plan(
            settings.steps,
            accumulate,
            rate,
            settings.schedule,
            settings.clip,
            max(1, settings.steps // 20),
            settings.seed,
        )
        trainer, losses = Trainer(task, optimizer, stream, accelerator, plan), []
        with StepProgress(title, start=0, steps=settings.steps, shown=accelerator.is_main_process) as progress:

            def on_log(step: int, values: Values) -> None:
                losses.append(values["loss"])
                progress.show(step, values)

            trainer.run(0, lambda step: None, on_log)
        stream.close()
        return task, losses

    @torch.no_grad()
    def _test(self, task: nn.Module, shards: ShardSet, subset: Ids | None) -> tuple[float, float, int]:
        """Return top-1 and top-5 accuracy in percent and the number of images, each counted once over all processes."""
        model = self.accelerator.unwrap_model(task)
        model.eval()
        device = self.accelerator.device
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in self._evaluation(shards, model.vit, subset):
            batch = to_device(batch, device)
            with self.accelerator.autocast():
                scores_BK = model.scores(batch.images)
            assert batch.labels is not None
            best = scores_BK.topk(min(5, self.num_classes), dim=1).indices == batch.labels[:, None]
            real = batch.ids >= 0
            totals += torch.stack([best[real, 0].sum(), best[real].any(dim=1).sum(), real.sum()])
        top1, top5, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        return 100 * top1 / count, 100 * top5 / count, int(count)

    def _evaluation(self, shards: ShardSet, vit: Vit, subset: Ids | None) -> Iterator[Batch]:
        accelerator, settings = self.accelerator, self.settings
        return evaluation_batches(
            shards,
            settings.view,
            vit.settings.image_size,
            batch=settings.micro_batch or 256,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=settings.workers,
            subset=subset,
        )


def choose_labels(labels: Ids, num_classes: int, per_class: int | None, seed: int) -> Ids:
    """Return the sample ids to train on: all, or ``per_class`` of each class drawn by ``seed``, in ascending order."""
    if per_class is None:
        return np.arange(len(labels), dtype=np.int64)
    parts = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise DataError(
                f"class {label} has {len(members)} labelled images, labels_per_class asks for {per_class}",
                fix=f"labels_per_class={len(members)}",
            )
        parts.append(members[permutation(len(members), seed, label)[:per_class]])
    return np.sort(np.concatenate(parts)).astype(np.int64)


def split_held_out(ids: Ids, labels: Ids, share: float, seed: int) -> tuple[Ids, Ids]:
    """Split ids into those to fit and those held out, ``share`` of every class and at least one image of it."""
    held = []
    for label in np.unique(labels[ids]):
        members = ids[labels[ids] == label]
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise DataError(
                f"class {label} has {len(members)} labelled image(s): none is left beside the held-out ones",
                fix="learning_rates=[] or more labels_per_class",
            )
        held.append(members[permutation(len(members), seed, int(label), 1)[:count]])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(ids, chosen), chosen


def load_vit(settings: TransferConfig) -> Vit:
    """Return the ViT to fine-tune at the transfer's resolution: the backbone's weights, or fresh ones for ``scratch``."""
    if settings.backbone == SCRATCH:
        size = settings.image_size or settings.vit.image_size
        return Vit(replace(settings.vit, image_size=size))
    backbone = load_backbone(settings.backbone)
    size = settings.image_size or backbone.vit.image_size
    old_grid = Vit(backbone.vit).grid
    vit = Vit(replace(backbone.vit, image_size=size))
    weights = dict(backbone.weights)
    weights["pos_embed"] = resize_positions(weights["pos_embed"], old_grid, vit.grid, settings.interpolation)
    try:
        vit.timm.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{settings.backbone} does not hold the weights of its own settings: {error}") from error
    return vit


def load_origin(backbone: str) -> str:
    """Return where a backbone comes from, in words."""
    return SCRATCH if backbone == SCRATCH else load_backbone(backbone).origin


def flops_per_image(task: nn.Module) -> float:
    """Count the floating-point operations of a forward and backward pass of one image (torch's counter)."""
    vit = task.vit
    assert isinstance(vit, Vit)
    device = next(task.parameters()).device
    image = torch.zeros(1, 3, *vit.settings.image_size, dtype=torch.uint8, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        task(Batch(image, zero, zero, 0)).loss.backward()
    task.zero_grad()
    return float(counter.get_total_flops())


def _labelled(root: str, split: str) -> ShardSet:
    shards = open_shards(root, split)
    if shards.classes is None:
        raise DataError(f"{root}: the split {split} carries no labels", fix="mpp-shard SOURCE OUT labels=folders")
    return shards
