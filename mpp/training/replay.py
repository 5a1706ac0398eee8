"""Take a step of a run again, from the checkpoint before it, and say what in it is not finite."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.stream.batches import Batch
from mpp.training.checkpoint import CHECKPOINTS, complete_checkpoints, verify
from mpp.training.finite import Judged
from mpp.training.pretraining import PretrainConfig, Pretraining, build


@dataclass(frozen=True)
class Replayed:
    """A step taken again: as it was recorded, as it is now, and what is behind that.

    ``samples`` are (shard:key, loss of the sample alone, without stochastic depth), those that are not finite and the
    highest first; ``parameters`` those whose gradients are not finite.
    """

    recorded: Judged
    now: Judged
    samples: list[tuple[str, float]]
    parameters: list[str]


def replay(file: Path) -> Replayed:
    """Take the step again that ``file``, written by a run into its folder, tells of.

    Raises ``ConfigError`` for a file that is none; nothing is written.
    """
    facts = _read(file)
    step = int(facts["step"])
    settings = replace(resolve(PretrainConfig, facts["settings"]), out=str(file.absolute().parent))
    shards, task, accelerator = build(settings)
    if accelerator.state.deepspeed_plugin is not None:
        raise ConfigError("DeepSpeed hides the gradients of a step", fix="mpp replay without its launcher")
    if accelerator.num_processes != facts["world"]:
        accelerator.print(f"the step was taken on {facts['world']} processes: what follows differs by rounding")
    job = Pretraining(settings, shards, task, accelerator, _newest_before(file.absolute().parent, step))
    with closing(job.stream):
        trainer, batches = job.trainer, list[Batch]()
        trainer.run(job.start, lambda done: None, lambda done, values: None, lambda judged, last: None, end=step - 1)
        # Clipping by a norm that is no number would make every gradient one that is none.
        trainer.plan = replace(trainer.plan, clip=None)
        trainer.batches = _kept(trainer.batches, batches)
        trainer.seed(step - 1)
        outputs, norm = trainer.gradients(step - 1)
        assert norm is not None
        trainer.finite.read()
        trainer.finite.judge(step - 1, [output.loss for output in outputs], norm)
        (now,) = trainer.finite.read()
        model = accelerator.unwrap_model(job.task)
        samples = [(job.stream.where(sample), loss) for sample, loss in sample_losses(model, batches, accelerator)]
        samples.sort(key=lambda one: (math.isfinite(one[1]), -one[1]))
    recorded = Judged(step, float(facts["loss"]), float(facts["gradient_norm"]))
    return Replayed(recorded, now, samples, bad_gradients(model))


def sample_losses(model: nn.Module, batches: list[Batch], accelerator: Accelerator) -> Iterator[tuple[int, float]]:
    """Yield the id of every sample and its loss in a batch of its own."""
    model.eval()
    for batch in batches:
        for row in range(len(batch.ids)):
            alone = Batch(*(None if part is None else part[row : row + 1] for part in batch))  # type: ignore[arg-type]
            with torch.no_grad(), accelerator.autocast():
                yield int(batch.ids[row]), float(model(alone).loss)


def bad_gradients(model: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradients are not finite."""
    found = [(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None]
    return [name for name, gradient in found if not bool(torch.isfinite(gradient).all())]


def _kept(source: Iterator[Batch], batches: list[Batch]) -> Any:
    for batch in source:
        batches.append(batch)
        yield batch


def _read(file: Path) -> dict[str, Any]:
    try:
        facts = dict(json.loads(file.read_text()))
        if facts.keys() >= {"step", "loss", "gradient_norm", "world", "settings"}:
            return facts
        reason = "it lacks what a replay needs"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    raise ConfigError(f"{file} is no replay file: {reason}", fix="mpp replay RUN/replay-STEP.json")


def _newest_before(run: Path, step: int) -> Path | None:
    """Return the newest intact checkpoint at or before the beginning of a step; None for a run's beginning."""
    for path in complete_checkpoints(run / CHECKPOINTS):
        if int(path.name.rpartition("-")[2]) < step:
            try:
                verify(path)
                return path
            except CheckpointError as error:
                print(f"warning: {error}; the one before is used", flush=True)
    return None
