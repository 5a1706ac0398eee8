"""The settings of a transfer: how a backbone is fine-tuned, and which backbone on which labelled shards."""

from typing import Annotated

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError
from mpp.evaluation.accuracy import Metric
from mpp.evaluation.protocols import LabelledData
from mpp.model.families import VitConfig
from mpp.model.mixing import Mixing
from mpp.model.vit import Interpolation
from mpp.stream.loader import StreamConfig
from mpp.stream.views import ViewConfig
from mpp.training.computing import Compute
from mpp.training.devices import Precision
from mpp.training.optim import OptimizerConfig, Schedule, Sgd


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
    metric: Metric = Field(
        "top1", description="what choices are made by and results are quoted in; mean_per_class: mean of the classes'"
    )
    steps: int = Field(500, gt=0, description="optimizer steps")
    evaluate_every: int | None = Field(
        None, gt=0, description="steps between tests on held-out labels; the best rate and step is chosen; null: no"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is tested in their place (Polyak)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread over all classes")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth rate of the last block; null: the backbone's own"
    )
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
        description="run folder of mpp pretrain, a backbone.safetensors or backbone-ema.safetensors, scratch, or a "
        "network of timm: timm:NAME with its own weights, timm:NAME@FILE with those of a file"
    )
    shards: str = Field(description="folder that mpp-shard wrote, with labels; or where data are written to")
    out: str = Field(description="folder of results.jsonl; one line is added")
    train_split: str = Field("train", description="split to fine-tune on")
    test_split: str = Field("test", description="split to evaluate, every image once")
    vit: VitConfig = Field(
        VitConfig(), description="for backbone=scratch; a backbone carries its own, vit.pool is for timm:NAME too"
    )
    labels_per_class: int | None = Field(None, gt=0, description="labelled images of each class; null: all")
    seed: int = Field(0, ge=0, description="seed of the subset, the order, the views and the mixing")


def check_steps(settings: TransferRecipe) -> None:
    """Raise ``ConfigError`` for parts that do not fit into the steps."""
    settings.schedule.check(settings.steps)
    every, ema = settings.evaluate_every, settings.ema
    if every is not None and every >= settings.steps:
        raise ConfigError(
            f"evaluate_every {every} is not below steps {settings.steps}: there would be one test, at the end",
            fix="evaluate_every=null, or a part of the steps",
        )
    over = 0.0 if ema is None else round(1 / (1 - ema), 3)
    if over > settings.steps:  # it would be, in the main, the weights of the beginning
        raise ConfigError(
            f"ema {ema} averages over about {over:,.0f} steps, there are {settings.steps}",
            fix=f"ema={1 - 10 / settings.steps:.3g} or ema=null" if settings.steps > 10 else "ema=null",
        )
