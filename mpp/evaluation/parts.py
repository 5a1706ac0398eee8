"""The parts of a comparison: found finished in its folder, or run, here, side by side or as jobs of a cluster.

A part is one pretraining, one choice of a rate or one fine-tuning. Its record, parts/NAME.json, is written whole when
it is done, and its presence is the only meaning of "done". Parts of a stage do not need each other: it does not matter
who runs them, where, how often or in which order.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from mpp.disk import disk_errors, fsync_path
from mpp.errors import ConfigError, DataError
from mpp.evaluation.choosing import Choice
from mpp.evaluation.finetune import Finetuning, TransferResult
from mpp.evaluation.live import open_live_probe
from mpp.evaluation.plan import CompareConfig, Part, Plan, make_plan
from mpp.shards.engines import run_tasks, usable_cpus
from mpp.training.devices import open_accelerator
from mpp.training.pretraining import pretrain
from mpp.training.progress import say

PARTS, LOGS = "parts", "logs"
MACHINE = "machine"  # of a record: what the part was computed on
Record = dict[str, Any]
_FIELDS = {
    "pretrain": {"images_seen", "flops", "seconds"},
    "choose": {field.name for field in fields(Choice)},
    "final": {field.name for field in fields(TransferResult)},
}


def run_parts(plan: Plan) -> dict[Part, Record]:
    """Run the parts that are missing, stage by stage, and return the records of all."""
    settings = plan.settings
    accelerator = open_accelerator(settings.transfer.precision)
    alone = accelerator.num_processes == 1
    if not alone and (settings.parallel > 1 or settings.engine is not None):
        raise ConfigError(
            f"parallel and engine are for one process, a launcher started {accelerator.num_processes}",
            fix="parallel=1 and no engine, or mpp compare without accelerate launch",
        )
    records: dict[Part, Record] = {}
    for parts in plan.parts():
        missing = [part for part in parts if read_record(plan, part) is None]
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        if alone and settings.engine is not None:
            _tell(settings.engine.run(_run_alone, [(settings, part) for part in missing]), len(missing))
        elif alone and settings.parallel > 1 and len(missing) > 1:
            threads = max(1, usable_cpus() // settings.parallel)
            tasks = [(settings, part, threads) for part in missing]
            _tell(run_tasks(_run_beside_others, tasks, settings.parallel), len(missing))
        else:
            for part in missing:
                run_part(plan, part, is_main=accelerator.is_main_process)
                accelerator.wait_for_everyone()
        for part in parts:
            record = read_record(plan, part)
            if record is None:
                raise DataError(f"{part.name} was run and left no record", fix="a disk that all nodes share for out=")
            records[part] = record
    for part, record in records.items():
        if part.stage == "final":
            _hold_to(plan, part, record, records[_choice_of(plan, part)], ("learning_rate", "steps", "trials"))
    return records


def _tell(done: Iterator[str], count: int) -> None:
    """Say which of ``count`` parts of a stage are done as they come, and when the others will be at this pace."""
    began = time.perf_counter()
    for number, name in enumerate(done, 1):
        left = (time.perf_counter() - began) / number * (count - number)
        say(f"done: {name}, {number} of {count}, left {int(left // 60)}:{int(left % 60):02d}")


def run_part(plan: Plan, part: Part, *, is_main: bool = True) -> None:
    """Run one part, by all processes together, and write its record; what it needs must be there."""
    arm = plan.arm(part.arm)
    if is_main:
        say(f"comparison: {part.name}")
    if part.stage == "pretrain":
        pretrain(plan.pretraining(arm, part.seed), open_live_probe)
        record: Record = _pretraining_cost(plan, part)
    else:
        job = Finetuning(plan.transfer(arm, part.labels, part.seed))
        if part.stage == "choose":
            record = asdict(job.choose())
        else:
            chosen = read_record(plan, _choice_of(plan, part))
            assert chosen is not None
            record = asdict(job.final(Choice(**{name: chosen[name] for name in _FIELDS["choose"]})))
    if is_main:
        _write(_path(plan, part), {**record, MACHINE: _machine(plan)})


def read_record(plan: Plan, part: Part) -> Record | None:
    """Return the record of a part, None where it is not done; raise ``DataError`` for what is not its record."""
    path = _path(plan, part)
    try:
        record: Record = json.loads(path.read_text())
        missing = _FIELDS[part.stage] - record.keys()
    except FileNotFoundError:
        return None
    except (ValueError, OSError, AttributeError) as error:
        raise _no_record(path, str(error)) from None
    if missing:
        raise _no_record(path, f"without {', '.join(sorted(missing))}")
    if part.stage == "final":
        metric = plan.settings.transfer.metric
        own = {"seed": part.seed, "labels_per_class": part.labels, "metric": metric}
        _hold_to(plan, part, record, own, tuple(own))
    return record


def _hold_to(plan: Plan, part: Part, record: Record, expected: Record, names: Sequence[str]) -> None:
    """Raise ``DataError`` where a record is that of another part: people copy and mend files."""
    for name in names:
        if record[name] != expected[name]:
            raise _no_record(_path(plan, part), f"its {name} is {record[name]}, that of the part {expected[name]}")


def _no_record(path: Path, why: str) -> DataError:
    return DataError(f"{path} is no record of this part: {why}", fix=f"rm {path}, and the same command")


def _machine(plan: Plan) -> str:
    """Return what this process computes on, and how exactly."""
    accelerator = open_accelerator(plan.settings.transfer.precision)
    on_gpu = accelerator.device.type == "cuda"
    name = torch.cuda.get_device_name(accelerator.device) if on_gpu else accelerator.device.type
    return f"{name}, {'fp32' if accelerator.mixed_precision == 'no' else accelerator.mixed_precision}"


def _run_alone(task: tuple[CompareConfig, Part]) -> str:
    """Run a part in a job of its own, whose log keeps what it says."""
    settings, part = task
    run_part(make_plan(settings), part)
    return part.name


def _run_beside_others(task: tuple[CompareConfig, Part, int]) -> str:
    """Run a part in a process beside others; what it says goes into logs/NAME.log."""
    settings, part, threads = task
    torch.set_num_threads(threads)
    with _log(Path(settings.out) / LOGS / f"{part.name}.log"):
        run_part(make_plan(settings), part)
    return part.name


@contextmanager
def _log(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, redirect_stdout(file):
        yield


def _choice_of(plan: Plan, part: Part) -> Part:
    return Part("choose", part.arm, part.labels, plan.settings.seeds[0])


def _pretraining_cost(plan: Plan, part: Part) -> Record:
    """Return what the pretraining took; its seconds are those of its steps, also where it was cut off and continued."""
    arm = plan.arm(part.arm)
    timing = plan.run_folder(arm, part.seed) / "timing.jsonl"
    lines = [json.loads(line) for line in timing.read_text().splitlines()]
    return {
        "images_seen": arm.images,
        "flops": arm.flops(plan.num_classes),
        "seconds": round(_seconds(lines), 3),
    }


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds of all steps, from the lines of timing.jsonl."""
    before, total = 0, 0.0
    for line in lines:
        if "seconds_per_step" in line:
            total += (line["step"] - before) * line["seconds_per_step"]
            before = line["step"]
    return total


def _path(plan: Plan, part: Part) -> Path:
    return Path(plan.settings.out) / PARTS / f"{part.name}.json"


def _write(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.writing")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
