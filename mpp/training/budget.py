"""What a pretraining run will need: memory of every GPU, images a second, days, energy. Computed, nothing allocated."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError
from mpp.model.encoders import build_encoder
from mpp.model.tasks import ClassificationConfig, build_task
from mpp.stream.mixture import Mixture, Shards, open_mixture
from mpp.training.devices import divide_batch
from mpp.training.gpu_memory import GpuMemory, MemoryPlan
from mpp.training.optim import build_optimizer
from mpp.training.recipe import PretrainRecipe
from mpp.training.utilisation import task_flops

GB = 10**9
RESERVE = 0.1  # share of a GPU's memory left to CUDA, NCCL, the memory inside kernels and fragmentation
_CLASSES = 1000  # of a supervised task without shards


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet describes it: memory in GB, dense bf16 TFLOP/s, board power in W."""

    memory_gb: float
    tflops: float
    watts: float


GpuName = Literal["a100", "a100-40gb", "h100", "h100-pcie", "h200", "b200", "mi300x", "l40s", "l4", "rtx4090"]
GPUS: dict[GpuName, Gpu] = {
    "a100": Gpu(80, 312, 400),
    "a100-40gb": Gpu(40, 312, 400),
    "h100": Gpu(80, 989, 700),
    "h100-pcie": Gpu(80, 756, 350),
    "h200": Gpu(141, 989, 700),
    "b200": Gpu(180, 2250, 1000),
    "mi300x": Gpu(192, 1307, 750),
    "l40s": Gpu(48, 362, 350),
    "l4": Gpu(24, 121, 72),
    "rtx4090": Gpu(24, 165, 450),
}


@config
class BudgetConfig(PretrainRecipe):
    """The settings of a pretraining run, and what it is to run on."""

    shards: Shards | None = Field(None, description="as for mpp pretrain; they give epochs, bytes and classes")
    split: str = Field("train", description="split of the shard set")
    out: str | None = Field(None, description="not used, so that the settings of mpp pretrain can stay as they are")
    gpus: int = Field(8, gt=0, description="GPUs, all together")
    gpu: GpuName = Field("h100", description="their kind; it sets the next three")
    memory_gb: float | None = Field(None, gt=0, description="memory of a GPU, 10^9 bytes")
    tflops: float | None = Field(None, gt=0, description="matrix rate of a GPU in this precision, 10^12 FLOP/s")
    watts: float | None = Field(None, gt=0, description="power of a GPU at work, W")
    utilisation: float = Field(0.4, gt=0, le=1, description="share of tflops that training reaches; an assumption")
    stages: tuple[Literal[0, 1, 2, 3], ...] = Field((0, 1, 2, 3), description="ZeRO stages to compare; 0 is DDP")
    classes: int | None = Field(
        None, gt=0, description="of a supervised task; null: those of the shards, 1000 without shards"
    )
    json: bool = Field(False, description="print the figures as JSON")


@dataclass(frozen=True)
class Budget:
    """All figures of a run. Rates are those that keep all GPUs busy; the energy is that of the GPUs alone."""

    parameters: int
    trained_parameters: int
    flops_per_image: float
    flops_per_step: float
    images: int
    epochs: float | None
    micro_batch: int
    accumulate: int
    gpu: Gpu
    room_bytes: float
    memory: tuple[GpuMemory, ...]
    images_per_second: float
    megabytes_per_second: float | None
    seconds_per_step: float
    days: float
    kilowatt_hours: float


def make_budget(settings: BudgetConfig) -> Budget:
    """Compute the budget of a run.

    Raises ``ConfigError`` for a batch that the GPUs do not divide, ``DataError`` for shards that cannot be opened.
    """
    micro, accumulate = divide_batch(settings.global_batch, settings.micro_batch, settings.gpus)
    shards = None if settings.shards is None else open_mixture(settings.shards, settings.split)
    gpu, classes = choose_gpu(settings), _num_classes(settings, shards)
    flops = task_flops(settings.task, settings.vit, classes)
    plan = _memory_plan(settings, classes)
    room, share = (1 - RESERVE) * gpu.memory_gb * GB, settings.global_batch // settings.gpus
    ways = [way for stage in settings.stages for way in plan.ways(stage, micro=micro, share=share, room=room)]
    images = settings.steps * settings.global_batch
    rate = settings.gpus * gpu.tflops * 1e12 * settings.utilisation / flops
    hours = images / rate / 3600
    return Budget(
        parameters=plan.parameters,
        trained_parameters=plan.trained,
        flops_per_image=flops,
        flops_per_step=flops * settings.global_batch,
        images=images,
        epochs=None if shards is None else images / shards.samples,
        micro_batch=micro,
        accumulate=accumulate,
        gpu=gpu,
        room_bytes=room,
        memory=tuple(ways),
        images_per_second=rate,
        megabytes_per_second=None if shards is None else rate * _bytes_per_image(shards) / 1e6,
        seconds_per_step=settings.global_batch / rate,
        days=hours / 24,
        kilowatt_hours=settings.gpus * gpu.watts * hours / 1000,
    )


def choose_gpu(settings: BudgetConfig) -> Gpu:
    """Return the GPU that the settings name, with the figures that they give instead of its own."""
    known = GPUS[settings.gpu]
    if settings.precision == "fp32" and settings.tflops is None:
        raise ConfigError(
            f"gpu: the rate of {settings.gpu} is known in bf16 alone, and precision is fp32",
            fix="tflops=RATE in fp32, or precision=bf16",
        )
    return Gpu(settings.memory_gb or known.memory_gb, settings.tflops or known.tflops, settings.watts or known.watts)


def _memory_plan(settings: BudgetConfig, classes: int) -> MemoryPlan:
    return MemoryPlan(
        lambda: build_task(settings.task, build_encoder(settings.vit), num_classes=classes, seed=0),
        settings.vit.image_size,
        lambda task: build_optimizer(task, settings.optimizer),
        gpus=settings.gpus,
        half=settings.precision != "fp32",
        averaged=settings.ema is not None,
    )


def _num_classes(settings: BudgetConfig, shards: Mixture | None) -> int:
    if shards is not None and isinstance(settings.task, ClassificationConfig):
        shards.require_labels()
    found = len(shards.classes or ()) if shards is not None else 0
    return settings.classes or found or _CLASSES


def _bytes_per_image(shards: Mixture) -> float:
    """Return the mean size of a stored sample, its part of a tar, over the sets as they are mixed."""
    sizes = [sum(shard.bytes for shard in one.shards) / one.samples for one in shards.sets]
    return sum(share * size for share, size in zip(shards.shares, sizes, strict=True)) / sum(shards.shares)
