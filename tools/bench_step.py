"""Measure the training step: on a CPU beside mpp's peers, and on a GPU end to end from shards.

    python tools/bench_step.py race OUT --peers PEERS/bin/python [--sizes ti16-224 w192-32] [--rounds 7]
    python tools/bench_step.py profile OUT [--sizes ...] [--rounds 3]
    python tools/bench_step.py gpu OUT --shards SHARDS [--models vit_small_patch16_224 ...]

A step is forward, backward and optimizer on 64 images in fp32. Every contestant is a process of its own that holds its
model; in each round all take one step in turn, each time in another order, so that a busy machine is busy for all.
Medians are shown. The work is counted once, as the floating-point operations of the plain model (every block at every
token) by torch's counter, and is the same for all: a share of the sgemm rate is one of useful work. Linux only.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_machine import ROOT, machine, own_versions, versions
from bench_step_loops import SIZES

TOOLS = ROOT / "tools"
THEIRS = ("vit_pytorch MPP", "vit_pytorch SimMIM", "HF ViTForMaskedImageModeling", "timm with a head")
PACKAGES = ("torch", "timm", "vit_pytorch", "transformers")
GEMM = 2048  # side of the matrices whose product is the measure of the machine


class Contestant:
    """A process that takes a step when told to."""

    def __init__(self, python: str, script: str, name: str, size: str, threads: int) -> None:
        self.name = name
        command = [python, str(TOOLS / script), name, size, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        if self._line() != "ready":
            self.process.communicate()
            raise RuntimeError(f"{name} did not start")

    def step(self) -> dict[str, float]:
        """Take one step; return its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        figures: dict[str, float] = json.loads(self._line())
        return figures

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _line(self) -> str:
        """Return the next line that is ours, "" at the end: libraries print what they like on their import."""
        assert self.process.stdout is not None
        lines = map(str.strip, iter(self.process.stdout.readline, ""))
        return next((line for line in lines if line == "ready" or line.startswith("{")), "")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "profile", "gpu"))
    parser.add_argument("out", type=Path, help="folder for the tables and figures")
    parser.add_argument("--peers", help="python of the environment of tools/requirements-peers.txt")
    parser.add_argument("--theirs", nargs="*", choices=THEIRS, default=list(THEIRS))
    parser.add_argument("--ours", nargs="+", default=["mpp"], help="'mpp', or 'mpp 8' with micro-batches of 8")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["ti16-224", "w192-32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", help="gpu: a shard set of images of at least 224 pixels")
    parser.add_argument("--models", nargs="+", help="gpu: timm names")
    arguments = parser.parse_args(argv)
    if arguments.what == "race" and arguments.theirs and arguments.peers is None:
        parser.error("race needs --peers")
    if arguments.what == "gpu" and arguments.shards is None:
        parser.error("gpu needs --shards")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; print tables, and write them and the figures into the folder OUT."""
    arguments = parsed(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "gpu":
        from bench_step_gpu import MODELS, table

        lines, figures = table(arguments.out, arguments.shards, arguments.models or MODELS)
        _write(arguments.out / "gpu", lines, figures)
        return 0
    for size in arguments.sizes:
        lines, figures = race(arguments, size) if arguments.what == "race" else profile(arguments, size)
        _write(arguments.out / f"{arguments.what}-{size}", lines, figures)
    return 0


def _write(path: Path, lines: list[str], figures: dict[str, Any]) -> None:
    table = "\n".join(lines)
    print(table + "\n", flush=True)
    path.with_suffix(".md").write_text(table + "\n")
    figures = {"command": sys.argv, "machine": machine(), "ours": own_versions(("torch", "timm")), **figures}
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def race(arguments: argparse.Namespace, size: str) -> tuple[list[str], dict[str, Any]]:
    """Let all take steps in turn, the matrix product among them; return a table and all figures."""
    start = (size, arguments.threads)
    runners = [Contestant(sys.executable, "bench_step_ours.py", name, *start) for name in arguments.ours]
    runners += [Contestant(arguments.peers, "bench_step_peers.py", name, *start) for name in arguments.theirs]
    order = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {runner.name: [] for runner in runners}
    rates = []
    for _ in range(arguments.rounds):
        rates.append(gemm_rate(arguments.threads))
        for runner in order.sample(runners, len(runners)):
            found[runner.name].append(runner.step())
    for runner in runners:
        runner.close()
    flops = step_flops(size)
    packages = versions(arguments.peers, PACKAGES) if arguments.theirs else {}
    figures = {"steps": found, "sgemm": rates, "flops": flops, "theirs": packages}
    return race_table(size, found, arguments.theirs, flops, statistics.median(rates)), figures


def race_table(
    size: str, found: dict[str, list[dict[str, float]]], theirs: Sequence[str], flops: float, rate: float
) -> list[str]:
    """Return a table of the medians; times and memory against the best of ``theirs``, or of all without any."""
    seconds = {name: statistics.median(step["seconds"] for step in steps) for name, steps in found.items()}
    fastest = min(seconds[name] for name in theirs or found)
    memory = {name: (steps[-1]["peak"], steps[-1]["peak"] - steps[-1]["base"]) for name, steps in found.items()}
    least = min(memory[name][0] for name in theirs or found)
    lines = [
        f"| {size}, batch {SIZES[size].batch} | ms a step | times the fastest peer | of sgemm | peak MB |"
        " of the least | above torch | page faults | spread |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, steps in found.items():
        taken, (peak, own) = [step["seconds"] for step in steps], memory[name]
        lines.append(
            f"| {name} | {1e3 * seconds[name]:,.0f} | {fastest / seconds[name]:.2f} | "
            f"{flops / seconds[name] / rate:.0%} | {peak / 1e6:,.0f} | {peak / least:.2f} | {own / 1e6:,.0f} | "
            f"{statistics.median(step['faults'] for step in steps):,.0f} | "
            f"{(max(taken) - min(taken)) / seconds[name]:.0%} |"
        )
    return [*lines, f"\nsgemm {GEMM}^3: {rate / 1e9:,.0f} GFLOP/s; a step: {flops / 1e9:,.1f} GFLOP"]


def gemm_rate(threads: int) -> float:
    """Return the floating-point operations a second of a product of two square fp32 matrices."""
    program = (
        "import time, torch\n"
        f"torch.set_num_threads({threads})\n"
        f"a, b = torch.rand({GEMM}, {GEMM}), torch.rand({GEMM}, {GEMM})\n"
        "times = []\n"
        "for _ in range(6):\n"
        "    began = time.perf_counter()\n"
        "    a @ b\n"
        "    times.append(time.perf_counter() - began)\n"
        f"print(2 * {GEMM}**3 / sorted(times)[2])\n"
    )
    return float(subprocess.check_output([sys.executable, "-c", program]))


def step_flops(size: str) -> float:
    """Count the operations of a step of the plain model; its head, as all contestants', is at half of the patches."""
    from bench_step_gpu import flops_per_image
    from bench_step_ours import settings

    return SIZES[size].batch * flops_per_image(settings(SIZES[size]))


def profile(arguments: argparse.Namespace, size: str) -> tuple[list[str], dict[str, Any]]:
    """Say where the time of mpp's step goes, by kind of operation."""
    import torch
    from bench_step_ours import build
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(arguments.threads)
    step = build(SIZES[size])
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(arguments.rounds):
            step()
    kinds: dict[str, float] = {}
    operations = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    for operation, spent in operations.items():
        kinds[kind_of(operation)] = kinds.get(kind_of(operation), 0.0) + spent
    total = sum(kinds.values())
    lines = [f"| {size}: where a step of {total / 1e3 / arguments.rounds:,.0f} ms goes | share |", "|---|---:|"]
    lines += [f"| {kind} | {spent / total:.1%} |" for kind, spent in sorted(kinds.items(), key=lambda one: -one[1])]
    return lines, {"microseconds": operations}


# In this order: the first kind whose part is in an operation's name has it.
KINDS: dict[str, Sequence[str]] = {
    "attention": ("attention",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn", "convolution"),
    "GELU": ("gelu",),
    "norms": ("layer_norm",),
    "loss": ("softmax", "nll_loss", "argmax"),
    "optimizer": ("adam", "Optimizer"),
    "gather, scatter, copy": ("gather", "scatter", "index", "copy_", "cat", "clone", "slice", "zero", "fill", "sort"),
    "sums": ("aten::sum", "aten::mean"),
    "elementwise": ("add", "mul", "div", "sub"),
}


def kind_of(operation: str) -> str:
    """Return the kind that an operation is counted among."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "the rest")


if __name__ == "__main__":
    sys.exit(main())
