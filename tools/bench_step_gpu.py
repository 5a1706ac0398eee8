"""The part of tools/bench_step.py for a GPU: pretraining end to end from shards, at the largest micro-batch.

Utilisation is the operations of the plain model (no recomputation, every block at every token) over the rate that the
device reaches on a product of two bf16 matrices, measured here. On a machine without a GPU it runs on the CPU.
"""

import gc
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mpp.model.tasks import MaskedPatchesConfig, build_task, zero_linear
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch
from mpp.training.optim import AdamW, build_optimizer

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224")
_LOG_EVERY, _LAPS = 10, 8  # a figure is the median over the later half of the laps, after compilation
_MOST = 4096  # images of a micro-batch
_MEMORY_SHARE = 0.9  # of the device's: a run has more on it than the step alone


def table(
    out: Path, shards: str, models: Sequence[str], *, overrides: Sequence[str] = (), side: int = 8192, most: int = _MOST
) -> tuple[list[str], dict[str, Any]]:
    """Train every model for a while; return a table and all figures. ``overrides`` are settings of ``mpp pretrain``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device, side)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    lines = [
        f"| {name}, bf16, {rate / 1e12:,.1f} TFLOP/s | micro-batch | images/s | utilisation | stalled |",
        "|---|---:|---:|---:|---:|",
    ]
    figures: dict[str, Any] = {"device": name, "matrix_rate": rate, "models": {}}
    for model in models:
        vit = _settings(model, overrides)
        micro = largest_micro_batch(vit, device, most)
        laps = run_laps(out / model, shards, [f"vit.name={model}", f"global_batch={micro}", *overrides])
        speed, stalled = (
            statistics.median(lap[key] for lap in laps) for key in ("images_per_second", "data_wait_share")
        )
        share = speed * flops_per_image(vit) / rate
        lines.append(f"| {model} | {micro} | {speed:,.0f} | {share:.1%} | {stalled:.2%} |")
        figures["models"][model] = {"micro_batch": micro, "laps": laps, "utilisation": share}
    return lines, figures


def matrix_rate(device: torch.device, side: int) -> float:
    """Return the operations a second of a product of two square bf16 matrices, the median of several."""
    left, right = (torch.rand(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(seconds[5:])


def flops_per_image(vit: VitConfig) -> float:
    """Count forward and backward of the plain model and a 512-way head at half of the patches, by torch's counter."""
    model = Vit(vit)
    half = model.num_patches // 2
    head = zero_linear(model.width, 512).to("meta")
    model = model.to("meta")
    image = torch.zeros(1, 3, *vit.image_size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        head(model(image).patches_BND[:, :half]).sum().backward()
    return float(counter.get_total_flops())


def largest_micro_batch(vit: VitConfig, device: torch.device, most: int) -> int:
    """Return the largest power of two of images, up to ``most``, whose step fits on the device; ``most`` on a CPU."""
    if device.type != "cuda":
        return most
    task = build_task(MaskedPatchesConfig(), Vit(vit), num_classes=None, seed=0).to(device)
    optimizer = build_optimizer(task, AdamW())
    total = torch.cuda.get_device_properties(device).total_memory
    found, images = 1, 16
    while images <= most and _fits(task, optimizer, vit, device, images, total):
        found, images = images, 2 * images
    del task, optimizer
    gc.collect()
    torch.cuda.empty_cache()
    return found


def _fits(
    task: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    vit: VitConfig,
    device: torch.device,
    images: int,
    total: int,
) -> bool:
    """Tell whether a step on so many images stays within its share of the memory."""
    torch.cuda.reset_peak_memory_stats()
    pixels = torch.zeros(images, 3, *vit.image_size, dtype=torch.uint8, device=device)
    ids, epochs = torch.arange(images, device=device), torch.zeros(images, dtype=torch.int64, device=device)
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = task(Batch(pixels, None, ids, epochs)).loss
        loss.backward()
        optimizer.step()
        fits = torch.cuda.max_memory_allocated() < _MEMORY_SHARE * total
    except torch.cuda.OutOfMemoryError:
        fits = False
    optimizer.zero_grad()
    return fits


def run_laps(folder: Path, shards: str, settings: Sequence[str]) -> list[dict[str, float]]:
    """Pretrain as a user does, in a process of its own; return the timing of the later half of the log lines."""
    shutil.rmtree(folder, ignore_errors=True)
    lengths = [f"steps={_LOG_EVERY * _LAPS}", f"log_every={_LOG_EVERY}"]
    command = [sys.executable, "-m", "mpp.pretrain", f"shards={shards}", f"out={folder}", "precision=bf16"]
    subprocess.run([*command, *lengths, *settings], check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "timing.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[len(lines) // 2 :]]


def _settings(model: str, overrides: Sequence[str]) -> VitConfig:
    """Return the ViT that these settings of ``mpp pretrain`` ask for."""
    import yaml

    from mpp.config import resolve

    tree: dict[str, Any] = {"name": model}
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("vit."):
            tree[key.removeprefix("vit.")] = yaml.safe_load(value)
    return resolve(VitConfig, tree)
