"""One contestant of tools/bench_step.py: a process that takes a training step whenever it is told to.

Reads lines from standard input; each is answered with the JSON of one step's figures. Needs torch, nothing of mpp.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WARM = 3  # steps that do not count
BASE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes of Python with torch, the same for all

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """A ViT, its input and its batch; ``image`` and ``patch`` in pixels."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int = 3
    batch: int = 64


SIZES = {
    "ti16-224": Size(224, 16, 192, 12),
    "w192-32": Size(32, 4, 192, 6),
    "tiny": Size(8, 4, 16, 2, 2, 4),  # for the test of this script
}


def serve(contestants: Mapping[str, Callable[[Size], Step]]) -> None:
    """Build the contestant of the command line (NAME SIZE THREADS), then take a step for every line that comes."""
    torch.set_num_threads(int(sys.argv[3]))
    torch.manual_seed(0)
    step = contestants[sys.argv[1]](SIZES[sys.argv[2]])
    for _ in range(WARM):
        assert torch.isfinite(step())
    print("ready", flush=True)
    for _ in sys.stdin:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        loss = float(step())
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "seconds": seconds,
            # What a busy machine disturbs less than seconds, with one thread above all: others wait by spinning.
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "faults": after.ru_minflt - before.ru_minflt,
            "peak": after.ru_maxrss * 1024,
            "base": BASE,
            "loss": loss,
        }
        print(json.dumps(figures), flush=True)


def update(model: torch.nn.Module, loss_of: Callable[[], Tensor]) -> Step:
    """Return forward, backward and AdamW as a user writes them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
