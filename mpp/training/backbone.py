"""The backbone file that leaves a run: a network's weights as safetensors, with its settings in the header."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpp.config import dump, resolve
from mpp.disk import fsync_path
from mpp.errors import CheckpointError, ConfigError, DiskError, NumericsError
from mpp.model.encoders import Encoder
from mpp.model.families import VitConfig

BACKBONE = "backbone.safetensors"


@dataclass(frozen=True)
class Backbone:
    """A network's settings and weights, and where they come from."""

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


def _weights_hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
