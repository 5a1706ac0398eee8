"""Checkpoint files are data: whatever would run code when it is loaded is refused before, by name.

accelerate and DeepSpeed write optimizers and random states with ``torch.save``, that is as pickles, and read some of
them with ``weights_only=False``; torch.distributed.checkpoint reads its table of contents with plain ``pickle``.
"""

import importlib
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from enum import EnumType
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.other import TORCH_SAFE_GLOBALS
from torch.serialization import safe_globals

from mpp.errors import CheckpointError

_FORCE, _NEVER = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_TORCH_FILES = (".bin", ".pt", ".pkl")
# Parsers of these make no objects; nobody reads DeepSpeed's script; parts of .distcp are read under `only_data`.
_HARMLESS_FILES = (".safetensors", ".json", ".distcp", "latest", "zero_to_fp32.py")
# The classes that DeepSpeed 0.19 writes beside tensors: they hold numbers.
_DEEPSPEED = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_CONTENTS = ".metadata"
_RECORDS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


@contextmanager
def only_data() -> Iterator[None]:
    """While open, every ``torch.load`` makes tensors and plain values only, whatever its caller asks for."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _NEVER)}
    os.environ[_FORCE] = "1"
    try:
        with safe_globals(_plain_globals()):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_inert(checkpoint: Path) -> None:
    """Raise ``CheckpointError`` naming a file of a checkpoint that is more than data, without running any of it."""
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        reason = _more_than_data(path)
        if reason is not None:
            raise CheckpointError(
                f"checkpoint {checkpoint}: {path.relative_to(checkpoint)} is refused, {reason}",
                fix=f"find out who wrote it; without {checkpoint} the run continues from the checkpoint before",
            )


def _more_than_data(path: Path) -> str | None:
    """Return what is wrong with a file, None where it is data. Tensors stay on the disk."""
    if path.name.endswith(_HARMLESS_FILES):
        return None
    try:
        if path.name == _CONTENTS:
            with path.open("rb") as file:
                _Contents(file).load()
        elif path.suffix in _TORCH_FILES:
            with only_data():
                torch.load(path, map_location="cpu", mmap=True)
        else:
            return "a checkpoint has no files of its kind"
    except Exception as error:  # whatever a hostile pickle makes of an unpickler
        named = re.search(r"GLOBAL (\S+)", str(error))
        return f"loading it would call {named[1]}" if named else "it does not hold tensors and plain values only"
    return None


class _Contents(pickle.Unpickler):
    """Reads torch.distributed.checkpoint's table of contents: its own records, shapes and types."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(_module(module), name, None) if module in _RECORDS or module == "torch" else None
        record = getattr(found, "__module__", None) == module and (is_dataclass(found) or isinstance(found, EnumType))
        if record or isinstance(found, torch.dtype) or (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _plain_globals() -> list[Any]:
    known = list(TORCH_SAFE_GLOBALS)  # numpy's arrays, in the random states
    if "deepspeed" in sys.modules:
        known += [getattr(_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in _DEEPSPEED]
    return known


def _module(name: str) -> Any:
    return importlib.import_module(name)
