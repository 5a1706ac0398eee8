"""How weights and optimizer states lie over the processes of a run, and what follows for what is saved and loaded.

Copies of everything (one process, DDP) fit any number of processes. Parts (DeepSpeed ZeRO) fit only as many
processes, launched in the same way, as wrote them.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from mpp.errors import CheckpointError

COPIES = "copies"


def strategy_of(accelerator: Accelerator) -> str:
    """Return ``copies`` or ``zero1`` to ``zero3``; a checkpoint's facts hold it."""
    plugin = accelerator.state.deepspeed_plugin
    return COPIES if plugin is None else f"zero{plugin.zero_stage}"


def check_fits(accelerator: Accelerator, facts: dict[str, Any], checkpoint: Path) -> None:
    """Raise ``CheckpointError`` where a checkpoint's parts are not those of this launch."""
    saved = (facts.get("strategy", COPIES), facts.get("world"))
    own = (strategy_of(accelerator), accelerator.num_processes)
    if saved[0] == own[0] == COPIES or saved == own:
        return
    stage = "no DeepSpeed" if saved[0] == COPIES else f"DeepSpeed, --zero_stage {saved[0][-1]}"
    raise CheckpointError(
        f"checkpoint {checkpoint} was written by {_words(*saved)}, this launch is {_words(*own)}; "
        "parts of an optimizer cannot be divided anew",
        fix=f"accelerate launch with {stage}, --num_processes {saved[1]}; or out=ANOTHER to begin anew",
    )


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Write what training needs to go on, every process its part; the folder holds data and no program afterwards."""
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        for script in folder.glob("zero_to_*.py"):  # DeepSpeed leaves its converters beside the weights
            script.unlink()


def make_whole(accelerator: Accelerator, task: nn.Module) -> None:
    """Give the main process whole fp32 weights, in its memory, in the place of parts; the task is done with training.

    All processes call this together. One weight at a time is put together, so no device holds the whole model. Under
    bf16 the weights are those that DeepSpeed's optimizer keeps in fp32, not their rounded copies.
    """
    if strategy_of(accelerator) == COPIES:
        return
    for module in list(accelerator.unwrap_model(task).modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            full = _full(weight)
            if accelerator.is_main_process:
                module._parameters[name] = nn.Parameter(full.detach().float().cpu(), requires_grad=False)


def _full(weight: Tensor) -> Tensor:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    master: Tensor | None = safe_get_full_fp32_param(weight) if weight.requires_grad else None
    if master is not None:
        return master
    with GatheredParameters([weight]):  # one that is not trained: nobody keeps it in fp32
        return weight.detach().clone()


def _words(strategy: str, world: int | None) -> str:
    name = "DDP" if strategy == COPIES else f"DeepSpeed ZeRO {strategy[-1]}"
    return f"{name} on {world} process{'' if world == 1 else 'es'}"
