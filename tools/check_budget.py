"""Hold what ``mpp budget`` computes against a real step on this machine's processor: memory and time.

    python tools/check_budget.py [micro_batch=8] [key=value of mpp pretrain ...]

A process of its own builds the task as mpp pretrain does and reads its resident memory (/proc/self/status) after each
thing that stays: weights, gradients after a backward pass, optimizer after a step. Activations are the peak of a
step above that, with the gradients there already, as when micro-batches are accumulated. glibc is told to return freed
memory at once; what libraries take when they are first used is there before the weights, from a step of a tiny ViT.
Steps and matrix products are timed in turns; the shortest of each give the utilisation.
Exit code 0 where memory is within 15 % (weights, gradients, optimizer) and 25 % (activations).
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_machine import ROOT, machine, memory

from mpp.config import dump, parse, resolve
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.flops import blank_batch
from mpp.model.tasks import build_task
from mpp.training.budget import BudgetConfig, make_budget
from mpp.training.optim import build_optimizer
from mpp.training.utilisation import CPU_SIDE

STEPS = 3
TINY = VitConfig(name="vit_tiny_patch16_224", image_size=(32, 32), depth=1)
DEFAULTS = ("micro_batch=8", "precision=fp32", "tflops=1", "gpus=1", "stages=[0]", "stream.workers=0")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_MAX_": "1000000"}
ALLOWED = {"weights": 0.15, "gradients": 0.15, "optimizer": 0.15, "activations": 0.25}


def main() -> int:
    """Print computed and measured figures side by side."""
    given = parse(BudgetConfig, [*DEFAULTS, *sys.argv[1:]], prog="check_budget", about=__doc__ or "")
    settings = parse(
        BudgetConfig, [*DEFAULTS, *sys.argv[1:], f"global_batch={given.micro_batch}"], prog="check_budget", about=""
    )
    print(f"{settings.vit.name}, micro-batch {settings.micro_batch}, fp32; {json.dumps(machine())}")
    command = [sys.executable, __file__, "--measure", json.dumps(dump(settings))]
    environment = {**os.environ, **MALLOC, "PYTHONPATH": str(ROOT)}
    found = json.loads(subprocess.check_output(command, env=environment, text=True))
    budget = make_budget(settings)
    computed = {name: getattr(budget.memory[0], name) for name in ALLOWED}
    good = True
    for name, allowed in ALLOWED.items():
        off = computed[name] / found[name] - 1
        good &= abs(off) <= allowed
        sizes = f"computed {computed[name] / 1e6:9.1f} MB  measured {found[name] / 1e6:9.1f} MB"
        print(f"{name:12} {sizes}  {off:+.1%} (allowed {allowed:.0%})")
    print(f"{'held':12} computed peak {budget.memory[0].total / 1e6:9.1f} MB  measured {found['peak'] / 1e6:9.1f} MB")
    ideal = budget.flops_per_step / found["rate"]
    print(
        f"{'time':12} {found['seconds']:.2f} s a step, {ideal:.2f} s at {found['rate'] / 1e9:.0f} GFLOP/s, measured: "
        f"utilisation {ideal / found['seconds']:.1%}"
    )
    return 0 if good else 1


def measure(settings: BudgetConfig) -> dict[str, float]:
    """Take real steps; return the bytes that each thing takes, the seconds of a step and the matrix rate."""
    assert settings.micro_batch is not None
    task = build_task(settings.task, build_encoder(TINY), num_classes=2, seed=0)
    task(blank_batch(2, TINY.image_size, "cpu")).loss.backward()
    build_optimizer(task, settings.optimizer).step()
    del task
    multiply = _product()
    batch = blank_batch(settings.micro_batch, settings.vit.image_size, "cpu")
    batch.images.random_(generator=torch.Generator().manual_seed(0))
    marks = [_resident()]
    task = build_task(settings.task, build_encoder(settings.vit), num_classes=settings.classes or 1000, seed=0)
    marks.append(_resident())
    task(batch).loss.backward()
    marks.append(_resident())
    optimizer = build_optimizer(task, settings.optimizer)
    optimizer.step()
    marks.append(_resident())
    Path("/proc/self/clear_refs").write_text("5")  # begin anew with the peak
    task(batch).loss.backward()
    peak = memory(os.getpid())["peak"]

    def step() -> None:
        task(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds = [(_seconds(step), min(_seconds(multiply) for _ in range(5))) for _ in range(STEPS)]
    held = [after - before for before, after in zip(marks, [*marks[1:], peak], strict=True)]
    return {
        **dict(zip(ALLOWED, held, strict=True)),
        "peak": peak - marks[0],
        "seconds": min(of_step for of_step, _ in seconds),
        "rate": 2 * CPU_SIDE**3 / min(of_product for _, of_product in seconds),
    }


def _resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory(os.getpid())["resident"]


def _product() -> Callable[[], object]:
    """Return the product of matrices that mpp measures a processor by, done once."""
    numbers = torch.randn(CPU_SIDE, CPU_SIDE)
    out = numbers @ numbers
    return lambda: torch.mm(numbers, numbers, out=out)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(resolve(BudgetConfig, json.loads(sys.argv[2])))))
    else:
        raise SystemExit(main())
