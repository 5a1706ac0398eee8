"""Measure one training step of mpp beside its peers on a CPU: forward, backward, optimizer, a batch of 64 in fp32.

    python tools/bench_step.py race OUT --peers PEERS/bin/python [--sizes ti16-224 w192-32] [--rounds 7]
    python tools/bench_step.py profile OUT [--sizes ...]

Every contestant is a process of its own that holds its model; in each round all take one step in turn, in another order,
so that a busy machine is busy for all. Medians are shown. The work is counted once, as the floating-point operations of
the plain model (every block at every token), so the share of the sgemm rate is of useful work. Linux only.
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

from bench_machine import ROOT, machine, versions
from bench_step_loops import BATCH, SIZES

TOOLS = ROOT / "tools"
OURS = ("mpp",)
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
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def main() -> int:
    """Run what the command line asks for; write the figures as a table and as JSON into the folder OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "profile"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--peers", help="python of the environment of tools/requirements-peers.txt")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", nargs="+", default=list(OURS), help="variants of mpp, see tools/bench_step_ours.py")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "race" and arguments.peers is None:
        parser.error("race needs --peers")
    for size in arguments.sizes:
        lines, figures = race(arguments, size) if arguments.what == "race" else profile(arguments, size)
        table = "\n".join(lines)
        print(table, flush=True)
        (arguments.out / f"{arguments.what}-{size}.md").write_text(table + "\n")
        figures = {"command": sys.argv, "machine": machine(), **figures}
        (arguments.out / f"{arguments.what}-{size}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def race(arguments: argparse.Namespace, size: str) -> tuple[list[str], dict[str, Any]]:
    """Let all take steps in turn, the matrix product among them."""
    start = (size, arguments.threads)
    runners = [Contestant(sys.executable, "bench_step_ours.py", name, *start) for name in arguments.ours]
    runners += [Contestant(arguments.peers, "bench_step_peers.py", name, *start) for name in THEIRS]
    order, found = random.Random(0), {runner.name: [] for runner in runners}
    rates = []
    for _ in range(arguments.rounds):
        rates.append(gemm_rate(arguments.threads))
        for runner in order.sample(runners, len(runners)):
            found[runner.name].append(runner.step())
    for runner in runners:
        runner.close()
    flops, rate = step_flops(size), statistics.median(rates)
    seconds = {name: statistics.median(step["seconds"] for step in steps) for name, steps in found.items()}
    fastest = min(seconds[name] for name in THEIRS)
    least = min(found[name][-1]["peak"] for name in THEIRS)
    lines = [
        f"| {size}, batch {BATCH} | ms a step | times as fast as the fastest peer | share of sgemm | peak MB | of the least | spread |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, steps in found.items():
        taken = [step["seconds"] for step in steps]
        spread = (max(taken) - min(taken)) / seconds[name]
        peak = steps[-1]["peak"]
        share = flops / seconds[name] / rate
        lines.append(
            f"| {name} | {1e3 * seconds[name]:,.0f} | {fastest / seconds[name]:.2f} | {share:.0%} | {peak / 1e6:,.0f} | "
            f"{peak / least:.2f} | {spread:.0%} |"
        )
    lines.append(f"\nsgemm {GEMM}^3: {rate / 1e9:.0f} GFLOP/s; a step: {flops / 1e9:.0f} GFLOP\n")
    packages = versions(arguments.peers, PACKAGES)
    return lines, {"steps": found, "sgemm": rates, "flops": flops, "versions": packages}


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
    """Count the operations of forward and backward of the plain model with torch's counter, on the meta device."""
    import torch
    from bench_step_ours import settings
    from torch.utils.flop_counter import FlopCounterMode

    from mpp.model.tasks import zero_linear
    from mpp.model.vit import Vit

    with torch.device("meta"):
        vit = Vit(settings(SIZES[size]))
        head = zero_linear(vit.width, 512)
        side = SIZES[size].image
        images = torch.zeros(BATCH, 3, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        head(vit(images).patches_BND[:, : vit.num_patches // 2]).sum().backward()
    return float(counter.get_total_flops())


def profile(arguments: argparse.Namespace, size: str) -> tuple[list[str], dict[str, Any]]:
    """Say where the time of mpp's step goes, by kind of operation."""
    import torch
    from bench_step_ours import step_of

    torch.set_num_threads(arguments.threads)
    step = step_of(None)(SIZES[size])
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(arguments.rounds):
            step()
    kinds: dict[str, float] = {}
    for event in profiler.key_averages():
        kinds[kind_of(event.key)] = kinds.get(kind_of(event.key), 0.0) + event.self_cpu_time_total
    total = sum(kinds.values())
    lines = [f"| {size}: where a step of {total / 1e3 / arguments.rounds:,.0f} ms goes | share |", "|---|---:|"]
    lines += [f"| {kind} | {spent / total:.1%} |" for kind, spent in sorted(kinds.items(), key=lambda one: -one[1])]
    return lines, {"microseconds": kinds}


KINDS: dict[str, Sequence[str]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn", "convolution"),
    "attention": ("attention",),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "loss": ("softmax", "nll_loss"),
    "optimizer": ("adam", "Optimizer"),
    "gather, scatter, copy": ("gather", "scatter", "index", "copy_", "cat", "clone", "contiguous", "zero", "fill"),
    "sums": ("aten::sum", "aten::mean"),
    "elementwise": ("add", "mul", "div", "sub"),
}


def kind_of(operation: str) -> str:
    """Return the kind that an operation is counted among."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "the rest")


if __name__ == "__main__":
    sys.exit(main())
