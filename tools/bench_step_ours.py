"""mpp in tools/bench_step.py: the real task, optimizer and trainer on prepared batches of uint8 images.

    python tools/bench_step_ours.py NAME SIZE THREADS

NAME is ``mpp``, as a user gets it, or ``mpp N`` with micro-batches of N images.
"""

import itertools
import sys
from collections.abc import Callable

import torch
from bench_step_loops import Size, Step, serve
from torch import Tensor

from mpp.model.tasks import MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.stream.batches import Batch
from mpp.training.computing import Compute, images_at_once, set_up
from mpp.training.devices import divide_batch, open_accelerator, prepare
from mpp.training.loop import Plan, Trainer
from mpp.training.optim import AdamW, Schedule, build_optimizer


def settings(size: Size) -> VitConfig:
    """Return the ViT of a size."""
    return VitConfig(
        name="vit_tiny_patch16_224",
        image_size=(size.image, size.image),
        patch_size=size.patch,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        pool="mean",
    )


def noise(size: Size, micro: int) -> list[Batch]:
    """Return the micro-batches of a step."""
    images = torch.randint(0, 256, (size.batch, 3, size.image, size.image), dtype=torch.uint8)
    ids, zeros = torch.arange(size.batch), torch.zeros(size.batch, dtype=torch.int64)
    parts = zip(images.split(micro), ids.split(micro), zeros.split(micro), strict=True)
    return [Batch(part, None, ids_B, epochs_B) for part, ids_B, epochs_B in parts]


def build(size: Size, micro_batch: int | None = None) -> Step:
    """Return a step of a trainer as ``mpp pretrain`` makes one; the loss is the mean over its micro-batches."""
    accelerator = open_accelerator("fp32")
    task = build_task(MaskedPatchesConfig(), Vit(settings(size)), num_classes=None, seed=0)
    set_up(task, Compute())
    fitting = images_at_once(task.vit, accelerator.device)
    micro, accumulate = divide_batch(size.batch, micro_batch, 1, fitting=fitting)
    optimizer = build_optimizer(task, AdamW())
    task, optimizer = prepare(accelerator, task, optimizer, micro_batch=micro, accumulate=accumulate, clip=None)
    plan = Plan(10**9, accumulate, 1e-4, Schedule(), None, 10**9, 0)
    trainer = Trainer(task, optimizer, itertools.cycle(noise(size, micro)), accelerator, plan)
    task.train()

    def step() -> Tensor:
        outputs, norm = trainer.gradients(0)
        trainer._update(0, outputs, norm)
        trainer.read_judged(None)
        return torch.stack([output.loss for output in outputs]).mean()

    return step


if __name__ == "__main__":
    size_of = sys.argv[1].partition(" ")[2]
    made: Callable[[Size], Step] = lambda size: build(size, int(size_of) if size_of else None)  # noqa: E731
    serve({sys.argv[1]: made})
