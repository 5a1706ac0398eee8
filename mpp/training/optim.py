"""Parameter groups, optimizers, and the learning rate as a function of the step."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer

from mpp.config import config
from mpp.errors import ConfigError
from mpp.model.encoders import Encoder

_NO_DECAY = ("pos_embed", "cls_token", "reg_token", "mask_token", "attn_pool.latent")


@config
class AdamW:
    """Adam with decoupled weight decay, none on biases, norms, positions and tokens."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="decay per step, times the learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the moment estimates")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a block over that of the block above it")


@config
class Adam:
    """Adam without weight decay, as the paper pretrains masked patches."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate (ViT, B.1.2)")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the moment estimates")


@config
class Sgd:
    """SGD with momentum and no weight decay: the paper's fine-tuning (ViT, B.1.1)."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.01, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")


OptimizerConfig = Annotated[AdamW | Adam | Sgd, Field(discriminator="kind")]


@config
class Schedule:
    """How the learning rate goes from the first step to the last."""

    decay: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="fall from the peak to zero after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to the peak")

    def check(self, num_steps: int) -> None:
        """Raise ``ConfigError`` for a warm-up that would not end: such a run never sees its learning rate."""
        if self.warmup_steps >= num_steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} is not below steps {num_steps}",
                fix=f"schedule.warmup_steps={num_steps // 10}",
            )

    def factor(self, step: int, num_steps: int) -> float:
        """Return the learning rate of ``step`` (0 .. num_steps - 1) as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.decay == "linear" else 1.0


def build_optimizer(task: nn.Module, settings: OptimizerConfig) -> Optimizer:
    """Return the optimizer of a task; each group carries ``lr_scale``, which the loop multiplies into the rate."""
    if isinstance(settings, Sgd):
        groups = [{"params": [p for p in task.parameters() if p.requires_grad], "lr_scale": 1.0}]
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    if isinstance(settings, Adam):
        groups = _groups(task, weight_decay=0.0, layer_decay=1.0)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    groups = _groups(task, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _groups(task: nn.Module, *, weight_decay: float, layer_decay: float) -> list[dict[str, object]]:
    """Split parameters by weight decay and, through timm, by the depth of their block."""
    vit = task.vit
    assert isinstance(vit, Encoder)
    layers = param_groups_layer_decay(vit.timm, layer_decay=layer_decay)
    # timm gives 1 to the top block of a headless network, or to its attention pooling; our head stands above blocks.
    top = 1.0 if getattr(vit.timm, "attn_pool", None) is not None else layer_decay
    scale = {id(parameter): top * float(group["lr_scale"]) for group in layers for parameter in group["params"]}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(_NO_DECAY)
            key = (scale.get(id(parameter), 1.0), weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": group, "lr_scale": key[0], "weight_decay": key[1]} for key, group in groups.items()]
