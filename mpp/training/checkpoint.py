"""Atomic, verified checkpoints of a run, and the backbone file that leaves it.

A checkpoint is a folder `step-000000100`. It is written under a temporary name, every file hashed and fsynced,
the manifest written last, then renamed; only after that the oldest goes. Loading verifies the manifest: a damaged
checkpoint is renamed `.corrupt` (never deleted) and the one before is used.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpp.config import dump, resolve
from mpp.disk import fsync_path
from mpp.errors import CheckpointError, ConfigError, DiskError, NumericsError
from mpp.model.encoders import Encoder
from mpp.model.families import VitConfig

_MANIFEST = "manifest.json"
BACKBONE = "backbone.safetensors"
CHECKPOINTS = "checkpoints"


class CheckpointStore:
    """The checkpoints of one run folder; the two newest are kept. All processes call its methods together."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator

    def save(self, facts: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Save what ``write(folder)`` writes, with ``facts`` (JSON values; "step" among them) in the manifest."""
        name = f"step-{facts['step']:09d}"
        temporary = self.folder / f".{name}.writing"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            write(temporary)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                _commit(temporary, self.folder / name, facts)
        except (OSError, SafetensorError, RuntimeError) as error:  # what torch and safetensors raise on a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise DiskError(
                f"cannot save a checkpoint into {self.folder}: {error}", fix="free space, then the same command"
            ) from error
        if self.accelerator.is_main_process:
            for old in complete_checkpoints(self.folder)[2:]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest checkpoint that verifies, with its facts; None where there is none.

        Raises ``CheckpointError``, with each one's reason, where there are checkpoints and all are damaged.
        """
        choice: list[Any] = [None]
        if self.accelerator.is_main_process:
            choice = [self._verified()]
        broadcast_object_list(choice)
        if isinstance(choice[0], str):
            raise CheckpointError(choice[0], fix=f"remove {self.folder} to begin anew")
        return (Path(choice[0][0]), choice[0][1]) if choice[0] else None

    def _verified(self) -> tuple[str, dict[str, Any]] | str | None:
        reasons = []
        for path in complete_checkpoints(self.folder):
            try:
                return str(path), verify(path)
            except CheckpointError as error:
                reasons.append(str(error))
                print(f"warning: {error}; it is set aside as {path.name}.corrupt, the one before is used", flush=True)
                path.rename(path.with_name(path.name + ".corrupt"))
        set_aside = sorted(path.name for path in self.folder.glob("*.corrupt"))
        if not set_aside:
            return None
        return "\n  ".join([f"every checkpoint is damaged, {', '.join(set_aside)} are set aside", *reasons])


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
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
        files, facts = manifest["files"], manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} has no readable manifest ({type(error).__name__})") from None
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"checkpoint {checkpoint}: {name} is missing or not of {size} bytes")
        if _sha256(path) != digest:
            raise CheckpointError(f"checkpoint {checkpoint}: {name} does not have the sha256 it was saved with")
    assert isinstance(facts, dict)
    return facts


@dataclass(frozen=True)
class Backbone:
    """A ViT's settings and weights, and where they come from."""

    vit: VitConfig
    weights: dict[str, Tensor]
    origin: str


def save_backbone(path: Path, vit: Encoder, origin: str) -> None:
    """Write a network's weights, with its settings and their hash in the header, atomically as safetensors.

    Raises ``NumericsError`` for weights that are not finite, ``DiskError`` where the file cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in vit.timm.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise NumericsError(
            "the trained weights are not finite", fix="a lower learning rate, clip=1, or precision=fp32"
        )
    header = {"mpp": json.dumps({"vit": dump(vit.settings), "origin": origin, "sha256": _weights_hash(weights)})}
    temporary = path.with_name(f".{path.name}.writing")
    try:
        save_file(weights, temporary, header)
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"cannot write the backbone {path}: {error}") from error


def load_backbone(source: str) -> Backbone:
    """Read the backbone file ``source``, or that of the run folder ``source``; raise ``CheckpointError``."""
    path = Path(source)
    path = path / BACKBONE if path.is_dir() else path
    fix = "backbone=RUN, the folder of a finished `mpp pretrain`, or its backbone.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no backbone at {path}", fix=fix)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["mpp"])
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
        vit = resolve(VitConfig, header["vit"], where=str(path))
    except (SafetensorError, OSError, KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a backbone that mpp wrote ({error})", fix=fix) from error
    if _weights_hash(weights) != header["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its weights do not have the hash they were written with", fix="take another copy"
        )
    return Backbone(vit, weights, str(header["origin"]))


def _commit(temporary: Path, final: Path, facts: dict[str, Any]) -> None:
    files = {}
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        fsync_path(path)
        files[str(path.relative_to(temporary))] = (path.stat().st_size, _sha256(path))
    manifest = temporary / _MANIFEST
    manifest.write_text(json.dumps({"facts": facts, "files": files, "torch": torch.__version__}, indent=1))
    fsync_path(manifest)
    fsync_path(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    fsync_path(final.parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
