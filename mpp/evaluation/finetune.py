"""Fine-tune a backbone on labelled shards and test it: a new zero D x K head, one recipe for every backbone.

The pretraining head is gone; the learning rate is chosen on a held-out part of the training labels; every test
image is counted once (ViT, section 3.2 and B.1.1).
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mpp.config import config, dump
from mpp.errors import CheckpointError, DataError, DiskError, NumericsError
from mpp.evaluation.labelled import ready
from mpp.evaluation.labels import choose_labels, labelled_shards, read_labels, split_held_out
from mpp.evaluation.protocols import LabelledData
from mpp.model.encoders import Encoder, build_encoder
from mpp.model.flops import flops_per_image
from mpp.model.mixing import Mixing
from mpp.model.tasks import Classification, StepOutput, zero_linear
from mpp.model.vit import Interpolation, Vit, VitConfig, resize_positions
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import Batch
from mpp.stream.device import OnDevice
from mpp.stream.loader import StreamConfig, TrainStream, evaluation_batches
from mpp.stream.order import Ints
from mpp.stream.views import ViewConfig
from mpp.training.backbone import Backbone, load_backbone
from mpp.training.computing import Compute, images_at_once, set_up
from mpp.training.devices import Precision, divide_batch, nearest_divisor, open_accelerator, prepare
from mpp.training.loop import Plan, Trainer
from mpp.training.optim import OptimizerConfig, Schedule, Sgd, build_optimizer
from mpp.training.progress import StepProgress

SCRATCH: Final = "scratch"


@config
class TransferRecipe:
    """How a backbone is fine-tuned; the same for every backbone that is compared."""

    data: LabelledData | None = Field(
        None, description="labelled dataset that the shards are written from where they are not there yet"
    )
    view: ViewConfig = ViewConfig()
    mixing: Mixing = Mixing()
    image_size: tuple[int, int] | None = Field(None, description="height and width, pixels; null: as pretrained")
    interpolation: Interpolation = Field(
        "bicubic", description="of position embeddings: bicubic as timm, bilinear as the authors"
    )
    optimizer: OptimizerConfig = Sgd()
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="grid tried on held-out labels; where given, it replaces the optimizer's rate"
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the training labels of each class that the choice is made on"
    )
    schedule: Schedule = Schedule()
    steps: int = Field(500, gt=0, description="optimizer steps")
    global_batch: int = Field(512, gt=0, description="images per step, over all processes; at most all of them")
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass of a process; null: all, or on a CPU as many as make it fast"
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Precision = Field("auto", description="auto: bf16 on a GPU, fp32 on a CPU")
    compute: Compute = Compute()
    stream: StreamConfig = StreamConfig()


@config
class TransferConfig(TransferRecipe):
    """One transfer: which backbone, which labelled shards, how many labels."""

    backbone: str = Field(
        description="run folder of mpp pretrain, a backbone.safetensors or backbone-ema.safetensors, or scratch"
    )
    shards: str = Field(description="folder that mpp-shard wrote, with labels; or where data are written to")
    out: str = Field(description="folder of results.jsonl; one line is added")
    train_split: str = Field("train", description="split to fine-tune on")
    test_split: str = Field("test", description="split to evaluate, every image once")
    vit: VitConfig = Field(VitConfig(), description="for backbone=scratch alone; a backbone file carries its own")
    labels_per_class: int | None = Field(None, gt=0, description="labelled images of each class; null: all")
    seed: int = Field(0, ge=0, description="seed of the subset, the order, the views and the mixing")


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
    """Choose the learning rate, fine-tune on all chosen labels, test.

    Appends a JSON line with the result and all settings to OUT/results.jsonl. Raises ``CheckpointError`` for a
    backbone that is not one, ``DataError`` for shards without enough labels, ``DiskError`` where OUT cannot be
    written, all before the first step.
    """
    began = time.perf_counter()
    job = Finetuning(settings)
    path = results_file(settings.out, "results.jsonl")
    result = job.final(job.choose_learning_rate())
    result = replace(result, seconds=round(time.perf_counter() - began, 1))
    if job.accelerator.is_main_process:
        with path.open("a") as file:
            file.write(json.dumps({**asdict(result), "settings": dump(replace(settings, vit=job.vit))}) + "\n")
        print(
            f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} % of {result.test_images} images; added to {path}",
            flush=True,
        )
    return result


class Finetuning:
    """The data, backbone and accelerator of one transfer. Building it finds whatever would make the transfer fail."""

    def __init__(self, settings: TransferConfig) -> None:
        self.settings = settings
        settings.schedule.check(settings.steps)
        ready(settings.shards, settings.data)
        self.train = labelled_shards(settings.shards, settings.train_split)
        self.test = labelled_shards(settings.shards, settings.test_split)
        self.num_classes = len(self.train.classes or ())
        labels = read_labels(self.train)
        self.chosen = choose_labels(labels, self.num_classes, settings.labels_per_class, settings.seed)
        self.grid = sorted(set(settings.learning_rates)) or [settings.optimizer.learning_rate]
        self.fitted, self.held_out = self.chosen, self.chosen[:0]
        if len(self.grid) > 1:
            self.fitted, self.held_out = split_held_out(self.chosen, labels, settings.held_out, settings.seed)
        self.backbone = None if settings.backbone == SCRATCH else load_backbone(settings.backbone)
        vit = load_vit(settings, self.backbone)
        self.vit = vit.settings
        self.accelerator = open_accelerator(settings.precision)
        self.fitting = images_at_once(vit, self.accelerator.device, mixing=settings.mixing)
        for ids in (self.fitted, self.chosen):
            self._divide(ids)

    def choose_learning_rate(self) -> float:
        """Return the rate of the grid with the best accuracy on held-out labels; a tie goes to the smaller rate."""
        if len(self.grid) == 1:
            return self.grid[0]
        scores = []
        for rate in self.grid:
            try:
                task, _ = self._fit(self.fitted, rate, f"rate {rate:g}")
                scores.append(self._test(task, self.train, self.held_out)[0])
            except NumericsError:  # a rate that diverges is a bad rate
                scores.append(-1.0)
        return self.grid[int(np.argmax(scores))]

    def final(self, rate: float) -> TransferResult:
        """Fine-tune on all chosen labels at ``rate`` and test."""
        settings, began = self.settings, time.perf_counter()
        task, first_loss = self._fit(self.chosen, rate, "finetune")
        top1, top5, count = self._test(task, self.test, None)
        seen = settings.steps * self._divide(self.chosen)[0]
        return TransferResult(
            dataset=f"{settings.shards}/{settings.test_split}",
            origin=SCRATCH if self.backbone is None else self.backbone.origin,
            seed=settings.seed,
            recipe=settings.optimizer.kind,
            labels_per_class=settings.labels_per_class,
            learning_rate=rate,
            top1=top1,
            top5=top5,
            test_images=count,
            first_loss=first_loss,
            images_seen=seen,
            flops=seen * _flops_per_image(self.vit, self.num_classes),
            seconds=round(time.perf_counter() - began, 1),
        )

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

    def _fit(self, ids: Ints, rate: float, title: str) -> tuple[nn.Module, float]:
        """Return the fine-tuned task and its loss before the first update."""
        settings, accelerator = self.settings, self.accelerator
        batch, micro, accumulate = self._divide(ids)
        accelerator.free_memory()  # it would hold the models of all rates
        torch.manual_seed(settings.seed)
        vit = load_vit(settings, self.backbone)
        bare = Classification(vit, zero_linear(vit.width, self.num_classes), settings.mixing, seed=settings.seed)
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
            StepProgress(title, start=0, steps=settings.steps, shown=accelerator.is_main_process) as progress,
        ):
            Trainer(task, optimizer, stream, accelerator, plan).run(0, lambda step: None, progress.show)
        return task, float(first_losses[0])

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

    @torch.no_grad()
    def _test(self, task: nn.Module, shards: ShardSet, subset: Ints | None) -> tuple[float, float, int]:
        """Return top-1 and top-5 accuracy in percent and the number of images, each counted once over all processes."""
        model = self.accelerator.unwrap_model(task)
        model.eval()
        device = self.accelerator.device
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in OnDevice(self._evaluation(shards, subset), device):
            with self.accelerator.autocast():
                scores_BK = model.scores(batch.images)
            assert batch.labels is not None
            best = scores_BK.topk(min(5, self.num_classes), dim=1).indices == batch.labels[:, None]
            real = batch.ids >= 0
            totals += torch.stack([best[real, 0].sum(), best[real].any(dim=1).sum(), real.sum()])
        top1, top5, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        return 100 * top1 / count, 100 * top5 / count, int(count)

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


def load_vit(settings: TransferConfig, backbone: Backbone | None) -> Encoder:
    """Return the network to fine-tune, at the transfer's resolution; without a backbone its weights are fresh."""
    config = settings.vit if backbone is None else backbone.vit
    vit = build_encoder(replace(config, image_size=settings.image_size or config.image_size))
    if backbone is None:
        return vit
    weights = dict(backbone.weights)
    try:
        if isinstance(vit, Vit):
            old_grid = (config.image_size[0] // vit.patch[0], config.image_size[1] // vit.patch[1])
            weights["pos_embed"] = resize_positions(weights["pos_embed"], old_grid, vit.grid, settings.interpolation)
        vit.timm.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{settings.backbone} does not hold the weights of its own settings: {error}") from error
    return vit


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
