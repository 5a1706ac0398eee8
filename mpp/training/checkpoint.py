"""Atomic, verified checkpoints of a run.

A checkpoint is a folder `step-000000100`. It is written under a temporary name, every file hashed and fsynced,
the manifest written last, then renamed; only after that the oldest goes. Loading verifies the manifest: a damaged
checkpoint is renamed `.corrupt` (never deleted) and the one before is used. What is not data alone is not loaded.
"""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from mpp import __version__
from mpp.disk import fsync_path
from mpp.errors import CheckpointError, DiskError
from mpp.faults import reach
from mpp.training.inert import check_inert, only_data
from mpp.training.room import check_room, shortage
from mpp.training.together import from_main

CHECKPOINTS = "checkpoints"
KEPT = 2
_MANIFEST = "manifest.json"
_LEFT_BEHIND = re.compile(r"\.step-\d{9}\.(writing|removing)")
_PATIENCE = 3  # saves in a row that may fail
_LARGE = 2**30  # bytes from which on it is said that they are hashed


class CheckpointStore:
    """The checkpoints of one run folder; the two newest are kept. All processes call its methods together.

    Only the process that has the lock of the run may have one: what killed ones left behind is removed.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self._bytes = 0  # of a checkpoint, about
        self._failed = 0  # saves in a row

    def save(self, facts: dict[str, Any], write: Callable[[Path], None], *, last: bool = False) -> bool:
        """Save what ``write(folder)`` writes, with ``facts`` (JSON values; "step" among them) in the manifest.

        Where the disk does not take it, says so and returns False: what was saved before stands. Raises ``DiskError``
        instead where it is the third time in a row or the ``last`` chance.
        """
        final = self.folder / f"step-{facts['step']:09d}"
        temporary = self.folder / f".{final.name}.writing"
        failure = (
            self._attempt(lambda: _emptied(temporary, facts["step"]), only_main=True)
            or self._attempt(lambda: write(temporary))
            or self._attempt(lambda: self._commit(temporary, final, facts), only_main=True)
        )
        if failure is None:
            self._failed = 0
            return True
        self._failed += 1
        message = from_main(self.accelerator, lambda: self._given_up(temporary, failure))
        if last or self._failed == _PATIENCE:
            raise DiskError(message, fix="make room, then the same command continues the run")
        self.accelerator.print(f"warning: {message}; training goes on, the next save is tried", flush=True)
        return False

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest checkpoint that verifies, with its facts; None where there is none.

        Raises ``CheckpointError``, with each one's reason, where there are checkpoints and all are damaged, and where
        the newest holds more than data.
        """
        return from_main(self.accelerator, self._latest)

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint into all that is prepared; raise ``CheckpointError`` where it does not fit."""
        try:
            with only_data():
                self.accelerator.load_state(str(checkpoint))
        except (torch.OutOfMemoryError, torch.distributed.DistError):
            raise
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"checkpoint {checkpoint} does not fit what is trained: {reason}",
                fix="the settings and the launch that it was written with, or out=ANOTHER",
            ) from error

    def check_room(self, size: int) -> None:
        """Raise ``DiskError`` where the checkpoints to come, of about ``size`` bytes, do not fit on the disk."""
        self._bytes = size

        def check() -> None:
            found = complete_checkpoints(self.folder)
            if found:
                self._bytes = sum(path.stat().st_size for path in _files(found[0]))
            check_room(self.folder, self._bytes, kept=KEPT, have=len(found))

        from_main(self.accelerator, check)

    def _attempt(self, call: Callable[[], None], *, only_main: bool = False) -> str | None:
        """Call on every process, or the main one; return, on all alike, why one's disk did not take it."""
        failure = None
        if self.accelerator.is_main_process or not only_main:
            try:
                call()
            except (OSError, DiskError, SafetensorError, RuntimeError) as error:
                failure = _of_the_disk(error)
                if failure is None:
                    raise
        return next(filter(None, gather_object([failure])), None)

    def _commit(self, temporary: Path, final: Path, facts: dict[str, Any]) -> None:
        step = facts["step"]
        reach("save.written", step)
        paths = _files(temporary)
        for path in [*paths, *(path for path in temporary.rglob("*") if path.is_dir())]:
            fsync_path(path)
        reach("save.synced", step)
        body = {"facts": facts, "files": _hashed(temporary, paths, "saved"), "versions": _versions()}
        manifest = temporary / _MANIFEST
        manifest.write_text(json.dumps({**body, "sha256": _body_hash(body)}, indent=1))
        fsync_path(manifest)
        fsync_path(temporary)
        reach("save.manifest", step)
        if final.exists():  # put there by someone else: the run has been continued from one before
            _remove(final)
        reach("save.rename", step)
        temporary.rename(final)
        reach("save.renamed", step)
        fsync_path(self.folder)
        reach("save.safe", step)
        self._bytes = sum(size for size, _ in body["files"].values())
        for old in complete_checkpoints(self.folder)[KEPT:]:
            _remove(old, step)
        reach("save.end", step)

    def _given_up(self, temporary: Path, reason: str) -> str:
        shutil.rmtree(temporary, ignore_errors=True)
        stands = next((path.name for path in complete_checkpoints(self.folder)), None)
        rest = f"{stands} stands" if stands else "there is no earlier one"
        return f"cannot save a checkpoint into {self.folder}: {reason}; {shortage(self.folder, self._bytes)}; {rest}"

    def _latest(self) -> tuple[Path, dict[str, Any]] | None:
        for path in self.folder.glob(".step-*"):
            if _LEFT_BEHIND.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        reasons = []
        for path in complete_checkpoints(self.folder):
            try:
                facts = verify(path)
            except CheckpointError as error:
                aside = _set_aside(path)
                reasons.append(f"{error} (now {aside.name})")
                print(f"warning: {error}; it is set aside as {aside.name}, the one before is used", flush=True)
                continue
            check_inert(path)
            return path, facts
        aside_before = sorted(path.name for path in self.folder.glob("step-*.corrupt*"))
        if not aside_before:
            return None
        listed = "\n  ".join([f"every checkpoint is damaged, {', '.join(aside_before)} are set aside", *reasons])
        raise CheckpointError(listed, fix=f"a copy of one of them as it was, or remove {self.folder} to begin anew")


def complete_checkpoints(folder: Path) -> list[Path]:
    """List the committed checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def newest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run, verified; raise ``CheckpointError`` for none or a damaged one."""
    found = complete_checkpoints(run / CHECKPOINTS)
    if not found:
        raise CheckpointError(f"{run} has no checkpoint", fix="the folder of a run of mpp pretrain")
    verify(found[0])
    return found[0]


def verify(checkpoint: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return the facts; raise ``CheckpointError``."""
    try:
        body = json.loads((checkpoint / _MANIFEST).read_text())
        saved_as, files, facts = body.pop("sha256"), body["files"], dict(body["facts"])
        intact = saved_as == _body_hash(body)
        sizes = {str(name): int(size) for name, (size, _) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} has no readable manifest ({type(error).__name__})") from None
    if not intact:
        raise CheckpointError(f"checkpoint {checkpoint}: {_MANIFEST} does not have the sha256 it was saved with")
    try:
        found = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if not path.is_dir()}
        found.pop(_MANIFEST)
        links = [path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_symlink()]
        if links:
            raise CheckpointError(f"checkpoint {checkpoint}: {links[0].name} is a link")
        for name, size in sizes.items():
            if name not in found or found[name].stat().st_size != size:
                raise CheckpointError(f"checkpoint {checkpoint}: {name} is missing or not of {size} bytes")
        if more := sorted(found.keys() - sizes.keys()):
            raise CheckpointError(f"checkpoint {checkpoint}: {more[0]} is none of its files")
        hashes = _hashed(checkpoint, list(found.values()), "verified")
    except OSError as error:
        raise CheckpointError(f"checkpoint {checkpoint} cannot be read: {error}") from None
    for name, (_, digest) in files.items():
        if hashes[name][1] != digest:
            raise CheckpointError(f"checkpoint {checkpoint}: {name} does not have the sha256 it was saved with")
    return facts


def _emptied(folder: Path, step: int) -> None:
    reach("save.begin", step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reach("save.folder", step)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def _hashed(folder: Path, paths: list[Path], done: str) -> dict[str, tuple[int, str]]:
    """Return size and sha256 of files by their names below ``folder``; several are hashed at once."""
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) >= _LARGE:
        print(f"{folder.name.strip('.')}: {sum(sizes) / 2**30:,.1f} GiB are being {done}", flush=True)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashlib lets other threads run
        digests = list(threads.map(_sha256, paths))
    names = [str(path.relative_to(folder)) for path in paths]
    return {name: (size, digest) for name, size, digest in zip(names, sizes, digests, strict=True)}


def _remove(checkpoint: Path, step: int | None = None) -> None:
    """Remove a checkpoint so that one half removed is not taken for a damaged one."""
    going = checkpoint.with_name(f".{checkpoint.name}.removing")
    shutil.rmtree(going, ignore_errors=True)
    checkpoint.rename(going)
    reach("save.removing", step)
    shutil.rmtree(going)


def _set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint to a name that nothing has yet."""
    aside = checkpoint.with_name(f"{checkpoint.name}.corrupt")
    number = 2
    while aside.exists() or aside.is_symlink():
        aside = checkpoint.with_name(f"{checkpoint.name}.corrupt-{number}")
        number += 1
    checkpoint.rename(aside)
    return aside


def _of_the_disk(error: Exception) -> str | None:
    """Return how a disk failed, None for an error of something else; torch and safetensors hide the number."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, DiskError):
        return str(error).partition("\n")[0]
    if isinstance(error, SafetensorError):
        return str(error) if "I/O" in str(error) else None
    torn = "inline_container" in str(error) or "PytorchStreamWriter" in str(error) or "iostream" in str(error)
    return "torch.save could not write its file" if torn else None


def _versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("accelerate", "timm", "numpy")}
    return {"mpp": __version__, "python": platform.python_version(), "torch": str(torch.__version__), **others}


def _body_hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
