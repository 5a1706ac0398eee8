"""The settings of a pretraining run: what decides its result, and where its data and its folder are."""

from pydantic import Field

from mpp.config import config
from mpp.model.families import VitConfig
from mpp.model.tasks import MaskedPatchesConfig, TaskConfig
from mpp.stream.loader import StreamConfig
from mpp.stream.mixture import Shards
from mpp.stream.views import ViewConfig
from mpp.training.computing import Compute
from mpp.training.devices import Precision
from mpp.training.optim import BASE_BATCH, AdamW, OptimizerConfig, Scaling, Schedule
from mpp.training.probe_schedule import ProbeSchedule
from mpp.training.watchdog import Timeouts


@config
class PretrainRecipe:
    """What decides the result of a pretraining run, beside its data."""

    task: TaskConfig = MaskedPatchesConfig()
    vit: VitConfig = VitConfig()
    view: ViewConfig = ViewConfig()
    optimizer: OptimizerConfig = AdamW()
    learning_rate_scaling: Scaling | None = Field(
        None, description=f"how optimizer.learning_rate, then that of {BASE_BATCH} images, grows with global_batch"
    )
    schedule: Schedule = Schedule()
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, written as backbone-ema.safetensors"
    )
    ema_warmup: bool = Field(False, description="the decay rises to ema with the steps, as in timm")
    steps: int = Field(100_000, gt=0, description="optimizer steps")
    global_batch: int = Field(1024, gt=0, description="images per step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass of a process; null: all, or on a CPU as many as make it fast"
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Precision = Field("auto", description="auto: bf16 on a GPU, fp32 on a CPU")
    compute: Compute = Compute()
    seed: int = Field(0, ge=0, description="seed of weights, order, views, masks and mixing")
    stream: StreamConfig = StreamConfig()
    log_every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    save_every: int = Field(1000, gt=0, description="steps between checkpoints")
    tracker: str | tuple[str, ...] | None = Field(
        None, description="experiment tracker of accelerate, or a list: tensorboard, wandb, mlflow, trackio ..."
    )
    timeouts: Timeouts = Timeouts()
    probe: ProbeSchedule = ProbeSchedule()
    picture_every: int = Field(1000, gt=0, description="steps between pictures, for trackers that show pictures")


@config
class PretrainConfig(PretrainRecipe):
    """One pretraining run: the recipe, the shards, the folder."""

    shards: Shards = Field(
        description="folder that mpp-shard or mpp index wrote, WebDataset tars, a URL of such, or a list of them to mix"
    )
    split: str = Field("train", description="split of the shard set")
    out: str = Field(description="run folder; the same command again continues the run in it")
    allow_changed: tuple[str, ...] = Field(
        (), description="settings that a run may be continued with though it was begun with others: [steps, schedule]"
    )
