"""A run's folder: its settings, its environment, its metrics and its status.

config.yaml        every setting, written before the first step; a run is continued only with the same ones
environment.json   versions and devices
metrics.jsonl      one line a log step; a function of the settings alone, so equal for equal runs
timing.jsonl       the same steps with what the clock said
derived.json       what follows from the settings and the processes: the peak learning rate, the micro-batch ...
trackers/          what experiment trackers write
STATUS             running, finished, or stopped by ...
"""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from mpp.config import dump, read_yaml
from mpp.disk import lock_file
from mpp.errors import ConfigError, DiskError

FINISHED = "finished"

# Settings that change how a run is carried out, not what it computes.
_FREE = {"out", "stream", "log_every", "save_every", "micro_batch", "tracker", "picture_every"}


class Run:
    """An open run folder; one process at a time has it. ``finished`` says whether an earlier call ended the run.

    Raises ``ConfigError`` where the run was begun with other settings or is in use, ``DiskError`` where it cannot be.
    """

    def __init__(self, folder: Path, settings: Any) -> None:
        if (folder / "index.json").exists():
            raise ConfigError(f"{folder} holds shards, a run needs a folder of its own", fix="out=ANOTHER")
        self.folder, self._lock = folder, _locked(folder)
        try:
            _same_settings(folder / "config.yaml", dump(settings))
        except BaseException:
            self._lock.close()
            raise
        status = folder / "STATUS"
        self.finished = status.exists() and status.read_text().strip() == FINISHED
        if not self.finished:
            (folder / "environment.json").write_text(json.dumps(_environment(), indent=1) + "\n")
            self.status("running")

    def status(self, text: str) -> None:
        """Say in one line how the run stands."""
        (self.folder / "STATUS").write_text(text + "\n")

    def rewind(self, step: int) -> None:
        """Forget metrics of steps after ``step``: they will be computed again."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.folder / name
            lines = [line for line in path.read_text().splitlines() if _is_before(line, step)] if path.exists() else []
            temporary = path.with_suffix(".writing")
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(path)

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` or ``timing.jsonl``."""
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self, status: str) -> None:
        """Say how the run ended and let others in."""
        self.status(status)
        self._lock.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _locked(folder: Path) -> TextIO:
    """Make the folder and lock it for as long as the returned file is open."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock_file(folder / ".lock")
    except BlockingIOError:
        raise ConfigError(f"another process is running in {folder}", fix="wait for it, or out=ANOTHER") from None
    except OSError as error:
        message = f"cannot use {folder} as a run folder: {error.strerror}"
        raise DiskError(message, fix="out=FOLDER that can be written") from error


def _is_before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half a line
        return False


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with those that the run began with, which stay as they are."""
    if path.exists():
        old = read_yaml(path)
        changed = [line for line in _differences(old, settings, "") if not _FREE & set(line.split(":")[0].split("."))]
        if changed:
            listed = "".join(f"\n  {line}" for line in changed)
            raise ConfigError(
                f"{path.parent} was begun with other settings:{listed}", fix="the old settings, or out=ANOTHER"
            )
        return
    temporary = path.with_suffix(".writing")
    temporary.write_text(yaml.safe_dump(settings, sort_keys=False))
    temporary.replace(path)


def _differences(old: Any, new: Any, key: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [
            line for name in names for line in _differences(old.get(name), new.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if old == new else [f"{key}: was {old!r}, now {new!r}"]


def _environment() -> dict[str, Any]:
    packages = ("torch", "torchvision", "timm", "accelerate", "deepspeed", "webdataset", "numpy", "mpp")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": devices,
        "packages": versions,
    }
