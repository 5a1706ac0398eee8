"""The exponential moving average of a task's weights, beside the weights: checkpointed, and written as a backbone."""

from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mpp.errors import ConfigError
from mpp.training.devices import divides_weights

BACKBONE_EMA = "backbone-ema.safetensors"
_FILE = "ema.safetensors"


class WeightAverage(ModelEmaV3):
    """timm's average in fp32, with an update that the device itself can leave out.

    ``update`` of timm takes its weight from the host. To leave out a step that the optimizer left out, as it found
    gradients that are not finite, the host would have to wait for the device in every step.
    """

    def __init__(self, task: nn.Module, decay: float, *, warmup: bool, device: torch.device) -> None:
        super().__init__(task, decay=decay, use_warmup=warmup, dtype=torch.float32)
        self.module.requires_grad_(False).to(device)

    @torch.no_grad()
    def follow(self, task: nn.Module, step: int, skipped: Tensor | None = None) -> None:
        """Move towards the weights of ``task`` after update number ``step``, which counts from 1.

        ``skipped`` [], of any type, is not zero where the optimizer left the update out; then nothing moves. The first
        update copies the weights; the decay rises as in timm where there is a warm-up.
        """
        averages, weights = _floats(self.module), [value.float() for value in _floats(task)]
        share = 1 - self.get_decay(step)
        if skipped is not None and skipped.device.type != "cpu":
            _lerp_unless(skipped, averages, weights, share)
        elif skipped is None or not bool(skipped):
            torch._foreach_lerp_(averages, weights, share)
        for average, value in zip(_others(self.module), _others(task), strict=True):
            average.copy_(value)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint's folder."""
        save_file({name: value.contiguous() for name, value in self.module.state_dict().items()}, folder / _FILE)

    def resume(self, folder: Path, task: nn.Module) -> None:
        """Read the average of a checkpoint; one of a run without an average leaves that of its weights alone."""
        file = folder / _FILE
        self.module.load_state_dict(load_file(file) if file.exists() else task.state_dict())


def open_average(
    task: nn.Module, decay: float | None, *, warmup: bool, accelerator: Accelerator
) -> WeightAverage | None:
    """Return the average of a task's weights that begins with them, None without a ``decay``.

    Raises ``ConfigError`` where no process will have the whole weights.
    """
    if decay is None:
        return None
    if divides_weights(accelerator):
        raise ConfigError("ema averages whole weights, and ZeRO 3 and FSDP divide them", fix="ema=null, or ZeRO 1 or 2")
    return WeightAverage(task, decay, warmup=warmup, device=accelerator.device)


def _lerp_unless(skipped: Tensor, averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    """Move averages towards weights by a share that the device makes zero where ``skipped`` [] is not."""
    own = torch.full((), share, device=skipped.device) * (skipped == 0)
    torch._foreach_lerp_(averages, weights, [own] * len(averages))


def _floats(task: nn.Module) -> list[Tensor]:
    return [value for value in _values(task) if value.is_floating_point()]


def _others(task: nn.Module) -> list[Tensor]:
    return [value for value in _values(task) if not value.is_floating_point()]


def _values(task: nn.Module) -> list[Tensor]:
    return cast(list[Tensor], list(task.state_dict().values()))
