"""Say what a pretraining run will need before it is started: ``mpp budget --config FILE [gpus=N gpu=h100 ...]``."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mpp.config import parse
from mpp.errors import exit_code_of

if TYPE_CHECKING:
    from mpp.training.budget import Budget, BudgetConfig

ABOUT = """Memory of every GPU, images a second, days and energy of a run of mpp pretrain, from its settings alone:
nothing is allocated, no GPU is needed. It takes the settings of mpp pretrain and those of the machine:
  mpp budget --config configs/pretrain/vit_b16_imagenet.yaml gpus=8 gpu=a100 [shards=SHARDS]"""

_GIGA = 1e9


def run(argv: Sequence[str]) -> None:
    """Parse the settings, compute and print the budget."""
    from mpp.training.budget import BudgetConfig, make_budget

    settings = parse(BudgetConfig, argv, prog="mpp budget", about=ABOUT)
    budget = make_budget(settings)
    if settings.json:
        print(json.dumps({**asdict(budget), "gpu": budget.gpu._asdict()}, indent=1))
    else:
        print("\n".join(_lines(settings, budget)))


def _lines(settings: "BudgetConfig", budget: "Budget") -> Iterator[str]:
    """Yield the page, at most 100 columns wide."""
    gpu, each = budget.gpu, budget.images_per_second / settings.gpus
    height, width = settings.vit.image_size
    frozen = budget.parameters - budget.trained_parameters
    yield f"model     {settings.vit.name} at {height} x {width} px, {settings.task.kind}"
    yield f"          {budget.parameters:,} parameters" + (f", {frozen:,} of them fixed" if frozen else "")
    yield f"compute   {_engineering(budget.flops_per_image)}FLOP an image, forward and backward"
    yield f"          {_engineering(budget.flops_per_step)}FLOP a step of {settings.global_batch:,} images"
    yield (
        f"GPUs      {settings.gpus:,} x {settings.gpu}: {gpu.memory_gb:g} GB, {gpu.tflops:,g} TFLOP/s, {gpu.watts:g} W"
        f"; utilisation {settings.utilisation:g}, assumed"
    )
    yield ""
    yield from _memory_table(budget)
    yield ""
    yield f"stream    {budget.images_per_second:,.0f} images/s keep the GPUs busy, {each:,.0f} for each" + (
        "" if budget.megabytes_per_second is None else f"; {budget.megabytes_per_second:,.0f} MB/s of shards"
    )
    epochs = "" if budget.epochs is None else f", {budget.epochs:,.1f} epochs"
    images = _engineering(budget.images, " ")
    yield f"time      {_duration(budget.days)} for {settings.steps:,} steps ({images}images{epochs})"
    yield f"          {budget.seconds_per_step:.3g} s a step"
    energy = budget.kilowatt_hours
    yield f"energy    {energy:,.{0 if energy >= 100 else 2}f} kWh, of the GPUs alone at full power"


def _memory_table(budget: "Budget") -> Iterator[str]:
    """Yield the memory of a GPU, one line for every way to divide the training."""
    parts = "" if budget.accumulate == 1 else f", {budget.accumulate} of them a step"
    yield f"memory of a GPU in GB, with micro-batches of {budget.micro_batch:,} images{parts}"
    columns = ("weights", "grads", "optimizer", "buffers", "activations", "total", "fits", "largest")
    widths = [max(8, len(name) + 2) for name in columns]
    head = "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    yield f"{'':16}{head}"
    for way in budget.memory:
        held = (way.weights, way.gradients, way.optimizer, way.buffers, way.activations, way.total)
        cells = [f"{number / _GIGA:.2f}" for number in held]
        cells += ["yes" if way.total <= budget.room_bytes else "NO", f"{way.largest_micro_batch:,}"]
        yield f"{way.name:16}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    yield f"fits: within {budget.room_bytes / _GIGA:.1f} GB, the rest is left to CUDA, NCCL and fragmentation"
    yield "largest: images of the largest micro-batch that fits"
    yield from _advice(budget)


def _advice(budget: "Budget") -> Iterator[str]:
    """Yield what to set: the first way that fits, and what offloading takes of the machine's memory."""
    good = next((way for way in budget.memory if way.micro_batch), None)
    if good is None:
        yield "not even one image fits: more gpus, or a smaller model"
    else:
        yield f"micro_batch={good.micro_batch} is the largest for {good.name} that divides a GPU's share of the step"
    away = [f"{way.main_memory / _GIGA:.1f} GB ({way.name})" for way in budget.memory if way.main_memory]
    if away:
        yield f"offload: to the machine's memory, for every GPU {' or '.join(away)}"


def _engineering(number: float, gap: str = "") -> str:
    """Return a number with four digits and the prefix of its thousands, ``gap`` before what follows."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:,.4g} {prefix}{gap}"
    return f"{number:.4g} "


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    hours = 24 * days
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
