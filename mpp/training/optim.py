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
    head_weight_decay: float | None = Field(
        None, ge=0, description="weight decay of the head (arXiv:2106.04560, 3.1); null: as weight_decay"
    )
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


Scaling = Literal["linear", "sqrt"]
BASE_BATCH = 256  # images that a rate is quoted for where it grows with the batch (MAE, arXiv:2111.06377)


def peak_rate(learning_rate: float, scaling: Scaling | None, global_batch: int) -> float:
    """Return the peak learning rate of a global batch; scaled, ``learning_rate`` is that of ``BASE_BATCH`` images."""
    if scaling is None:
        return learning_rate
    times = global_batch / BASE_BATCH
    return learning_rate * (times if scaling == "linear" else math.sqrt(times))


@config
class Schedule:
    """How the learning rate goes from the first step to the last.

    Up to the cool-down, constant and rsqrt do not know how many steps there are: the same run can be made longer, or
    given a cool-down, from any of its checkpoints.
    """

    decay: Literal["cosine", "linear", "constant", "rsqrt"] = Field(
        "cosine", description="fall from the peak after the warm-up; cosine and linear reach zero at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to the peak")
    timescale: int = Field(10_000, gt=0, description="rsqrt: peak / sqrt(1 + t / timescale), t steps after the warm-up")
    cooldown_steps: int = Field(
        0, ge=0, description="constant and rsqrt: last steps, in which the rate falls linearly to zero"
    )

    def check(self, num_steps: int) -> None:
        """Raise ``ConfigError`` for parts that do not fit into the run or that its decay does not have."""
        if self.warmup_steps >= num_steps:  # such a run never sees its learning rate
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} is not below steps {num_steps}",
                fix=f"schedule.warmup_steps={num_steps // 10}",
            )
        if self.cooldown_steps and self.decay in ("cosine", "linear"):
            raise ConfigError(
                f"schedule.cooldown_steps {self.cooldown_steps}: {self.decay} falls to zero by itself",
                fix="schedule.cooldown_steps=0, or schedule.decay=rsqrt",
            )
        if self.warmup_steps + self.cooldown_steps > num_steps:
            raise ConfigError(
                f"schedule: {self.warmup_steps} warmup_steps and {self.cooldown_steps} cooldown_steps are more than "
                f"steps {num_steps}",
                fix=f"schedule.cooldown_steps={(num_steps - self.warmup_steps) // 5}",
            )

    def factor(self, step: int, num_steps: int) -> float:
        """Return the learning rate of ``step`` (0 .. num_steps - 1) as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        after = step - self.warmup_steps
        done = after / max(1, num_steps - self.warmup_steps)
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.decay == "linear":
            return 1 - done
        cooldown = min(1.0, (num_steps - step) / self.cooldown_steps) if self.cooldown_steps else 1.0
        return cooldown * (1.0 if self.decay == "constant" else 1 / math.sqrt(1 + after / self.timescale))


def build_optimizer(task: nn.Module, settings: OptimizerConfig) -> Optimizer:
    """Return the optimizer of a task; each group carries ``lr_scale``, which the loop multiplies into the rate."""
    if isinstance(settings, Sgd):
        groups = [{"params": [p for p in task.parameters() if p.requires_grad], "lr_scale": 1.0}]
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    if isinstance(settings, Adam):  # AdamW without decay is Adam without L2 regularisation
        groups = _groups(task, weight_decay=0.0, head_weight_decay=0.0, layer_decay=1.0)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    head = settings.weight_decay if settings.head_weight_decay is None else settings.head_weight_decay
    groups = _groups(task, weight_decay=settings.weight_decay, head_weight_decay=head, layer_decay=settings.layer_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _groups(
    task: nn.Module, *, weight_decay: float, head_weight_decay: float, layer_decay: float
) -> list[dict[str, object]]:
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
            decay = head_weight_decay if name.startswith("head.") else weight_decay
            key = (scale.get(id(parameter), 1.0), decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": group, "lr_scale": key[0], "weight_decay": key[1]} for key, group in groups.items()]
