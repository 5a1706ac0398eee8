"""Processes and devices, through Accelerate: who runs, in which precision, and how a global batch is divided."""

import os
from collections import deque
from typing import Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import nn
from torch.optim import Optimizer

from mpp.errors import ConfigError
from mpp.stream.order import check_divides

Precision = Literal["auto", "fp32", "bf16"]


def open_accelerator(precision: Precision) -> Accelerator:
    """Return the Accelerator of this process, whatever launched it; ``auto`` is bf16 on a GPU and fp32 elsewhere.

    Raises ``ConfigError`` where the launcher started several processes and Accelerate would run each as if alone.
    """
    wanted = ("bf16" if torch.cuda.is_available() else "fp32") if precision == "auto" else precision
    on_cpu = not torch.accelerator.is_available()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if on_cpu and deepspeed:
        _keep_to_gloo()
    accelerator = Accelerator(
        mixed_precision="no" if wanted == "fp32" else wanted,
        # Without `cpu` every process of a launch on CPUs runs as if alone; with it DeepSpeed is left out.
        cpu=on_cpu and not deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and deepspeed else None,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but each would run alone: Accelerate does not join them",
            fix="a file of configs/accelerate; FSDP on CPUs is not carried",
        )
    return accelerator


def _keep_to_gloo() -> None:
    """Have DeepSpeed build no collectives of its own for CPUs.

    A start that is killed while they are built leaves a lock in torch's cache that every later start waits for.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def divide_batch(global_batch: int, micro_batch: int | None, world: int) -> tuple[int, int]:
    """Return the micro-batch of a process and how many of them make its share of a global batch.

    Raises ``ConfigError`` where the processes, or the micro-batches, do not divide the global batch.
    """
    micro = min(micro_batch or global_batch, max(1, global_batch // world))
    check_divides(global_batch, world, micro)
    return micro, global_batch // world // micro


def prepare(
    accelerator: Accelerator,
    task: nn.Module,
    optimizer: Optimizer,
    *,
    micro_batch: int,
    accumulate: int,
    clip: float | None,
) -> tuple[nn.Module, Optimizer]:
    """Move a task and its optimizer to the device and wrap them for DDP or DeepSpeed.

    The data loader is not prepared: it is divided over processes already, so DeepSpeed is told the micro-batch. It
    is told the clipping too, which it does itself.
    """
    accelerator.gradient_accumulation_steps = accumulate
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = micro_batch
        plugin.deepspeed_config["gradient_accumulation_steps"] = accumulate
        plugin.deepspeed_config["gradient_clipping"] = clip or 0.0
        # With offload accelerate would put DeepSpeed's Adam in the place of any optimizer, SGD too.
        plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
        if plugin.deepspeed_config.get("bf16", {}).get("enabled"):
            # DeepSpeed rounds the weights but nothing that meets them; the loss stays in fp32, as under DDP.
            task.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(task.forward)
    prepared = accelerator.prepare(task, optimizer)
    return cast(tuple[nn.Module, Optimizer], prepared)


def divides_weights(accelerator: Accelerator) -> bool:
    """Return whether a process has only its share of the weights, as under ZeRO 3 and FSDP."""
    plugin = accelerator.state.deepspeed_plugin
    return accelerator.distributed_type == DistributedType.FSDP or (plugin is not None and plugin.zero_stage == 3)


class RunAhead:
    """Keeps this process at most two steps ahead of its GPU, which is enough to keep that at work.

    So what is asked for (a stop, a save) is not behind a long queue, and a step that hangs is noticed as that step.
    """

    def __init__(self, device: torch.device) -> None:
        self._ends: deque[torch.cuda.Event] | None = deque() if device.type == "cuda" else None

    def wait(self) -> None:
        """Note the end of a step, and wait for the end of the one before the last."""
        if self._ends is None:
            return
        end = torch.cuda.Event()
        end.record()
        self._ends.append(end)
        if len(self._ends) > 2:
            self._ends.popleft().synchronize()


def over_processes(accelerator: Accelerator, rates: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
    """Return the means of ``rates`` over all processes, with several their maxima as NAME_max, and sums of ``counts``.

    All processes call this at the same step.
    """
    own = torch.tensor([[*rates.values(), *counts.values()]], dtype=torch.float64)
    rows = accelerator.gather(own.float().to(accelerator.device)).double().cpu() if _several(accelerator) else own
    means, maxima, sums = rows.mean(0).tolist(), rows.max(0).values.tolist(), rows.sum(0).tolist()
    values = {name: round(mean, 5) for name, mean in zip(rates, means, strict=False)}
    if _several(accelerator):
        values |= {f"{name}_max": round(most, 5) for name, most in zip(rates, maxima, strict=False)}
    return values | dict(zip(counts, sums[len(rates) :], strict=True))


def _several(accelerator: Accelerator) -> bool:
    return bool(accelerator.num_processes > 1)


def leave_together() -> None:
    """Let the processes of a launch end together; gloo aborts where one leaves while others still talk."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
