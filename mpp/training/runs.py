"""A run's folder: its settings, its environment, its metrics and its status.

config.yaml        every setting, written before the first step; a run is continued only with the same ones, or with
                   others where `allow_changed` names them, and then the old file stays as config.yaml.1, .2 ...
environment.json   versions, devices, and the rate at which they multiply matrices
metrics.jsonl      one line a log step; a function of the settings alone, so equal for equal runs
                   and, where there are probes, one a probe
timing.jsonl       the same steps with what the clock said; utilisation is that of this rate
derived.json       what follows from the settings and the processes: the peak learning rate, the micro-batch ...
trackers/          what experiment trackers write
STATUS             running, finished, or stopped by ...
"""

import difflib
import errno
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from mpp.config import dump
from mpp.disk import disk_errors, fsync_path, lock_file
from mpp.errors import ConfigError, DiskError
from mpp.plain_yaml import read_yaml
from mpp.redaction import redact
from mpp.training.progress import say

FINISHED = "finished"

# Settings that change how a run is carried out, not what it computes.
_FREE = {
    "out",
    "stream",
    "log_every",
    "save_every",
    "micro_batch",
    "allow_changed",
    "tracker",
    "picture_every",
    "probe",
    "compute",
    "timeouts",
    "parallel",
    "engine",
}


class Run:
    """An open run folder; one process at a time has it. ``finished`` says whether an earlier call ended the run.

    Raises ``ConfigError`` where the run was begun with other settings than those ``allow_changed`` or is in use,
    ``DiskError`` where it cannot be.
    """

    def __init__(self, folder: Path, settings: Any, allow_changed: Sequence[str] = ()) -> None:
        if (folder / "index.json").exists():
            raise ConfigError(f"{folder} holds shards, a run needs a folder of its own", fix="out=ANOTHER")
        self.folder, self._lock = folder, _locked(folder)
        self._pending = {"metrics": "", "timing": ""}  # lines that the disk has not taken yet
        try:
            with disk_errors(folder):
                changed = _keep_settings(folder / "config.yaml", redact(dump(settings)), allow_changed)
                status = folder / "STATUS"
                self.finished = status.exists() and status.read_text().strip() == FINISHED and not changed
                if not self.finished:
                    self.write("environment.json", json.dumps(_environment(), indent=1) + "\n")
                    self.write("STATUS", "running\n")
        except BaseException:
            self._lock.close()
            raise

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all; raise ``DiskError`` where that cannot be."""
        with disk_errors(self.folder):
            _write(self.folder / name, text)

    def rewind(self, step: int) -> None:
        """Forget metrics of steps after ``step``: they will be computed again."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.folder / name
            lines = [line for line in path.read_text().splitlines() if _is_before(line, step)] if path.exists() else []
            self.write(name, "".join(line + "\n" for line in lines))

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` or ``timing.jsonl``, or keep it until the disk takes it."""
        waiting = bool(self._pending[name])
        self._pending[name] += json.dumps(entry) + "\n"
        try:
            self._append(name)
        except OSError as error:
            if not waiting:
                say(f"warning: {self.folder / name}.jsonl waits: {error.strerror or error}")

    def finish_lines(self) -> None:
        """Bring all lines to the disk, before a checkpoint of the steps they are of; raise ``DiskError``."""
        with disk_errors(self.folder):
            for name, lines in self._pending.items():
                if lines:
                    self._append(name)
                if (self.folder / f"{name}.jsonl").exists():
                    fsync_path(self.folder / f"{name}.jsonl")

    def _append(self, name: str) -> None:
        """Append what waits, whole or not at all."""
        path = self.folder / f"{name}.jsonl"
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(self._pending[name].encode())
                if written < len(self._pending[name].encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise
        self._pending[name] = ""

    def note_environment(self, facts: dict[str, Any]) -> None:
        """Add to ``environment.json`` what was measured."""
        known = json.loads((self.folder / "environment.json").read_text())
        self.write("environment.json", json.dumps({**known, **facts}, indent=1) + "\n")

    def close(self, status: str) -> None:
        """Say how the run ended, where the disk takes it, and let others in."""
        try:
            self.finish_lines()
            self.write("STATUS", status + "\n")
        except (OSError, DiskError) as error:
            print(f"warning: {error}", flush=True)
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


def settings_hash(settings: Any) -> str:
    """Return the sha256 of settings as config.yaml has them, without those that do not change what is computed."""
    plain = {name: value for name, value in redact(dump(settings)).items() if name not in _FREE}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _keep_settings(path: Path, settings: dict[str, Any], allowed: Sequence[str]) -> bool:
    """Write the settings, or compare them with those that the run began with; return whether allowed ones changed.

    Then the old file is kept under the next number.
    """
    _check_names(settings, allowed)
    if not path.exists():
        _write(path, yaml.safe_dump(settings, sort_keys=False))
        return False
    changed = {key: words for key, words in _differences(redact(read_yaml(path)), settings, "") if not _is_free(key)}
    refused = [key for key in changed if not any(key == name or key.startswith(f"{name}.") for name in allowed)]
    if refused:
        listed = "".join(f"\n  {key}: {changed[key]}" for key in refused)
        fix = "the old settings, or out=ANOTHER"
        if "allow_changed" in settings:
            fix += f", or to go on with the new ones allow_changed=[{', '.join(refused)}]"
        raise ConfigError(f"{path.parent} was begun with other settings:{listed}", fix=fix)
    if changed:
        number = next(number for number in range(1, 10**6) if not path.with_name(f"{path.name}.{number}").exists())
        _write(path.with_name(f"{path.name}.{number}"), path.read_text())
        _write(path, yaml.safe_dump(settings, sort_keys=False))
        print("".join(f"changed: {key} {words}\n" for key, words in changed.items()), end="", flush=True)
    return bool(changed)


def _is_free(key: str) -> bool:
    """Say whether a setting of a run, or of a recipe within a comparison, changes nothing that is computed."""
    first, _, rest = key.partition(".")
    return (rest.partition(".")[0] if first in ("pretrain", "transfer") and rest else first) in _FREE


def _check_names(settings: dict[str, Any], names: Sequence[str]) -> None:
    known = list(_keys(settings, ""))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(settings)}"
            raise ConfigError(f"allow_changed: there is no setting {name}; {hint}", fix="allow_changed=[KEY, ...]")


def _keys(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the keys below which two trees differ, and what was and is there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".strip("."))
    elif old != new:
        yield key, f"was {old!r}, now {new!r}"


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
