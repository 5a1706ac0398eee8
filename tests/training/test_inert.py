"""Nothing in a checkpoint runs: pickles that call and compiled modules are refused, and the marker stays away."""

import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from mpp.errors import CheckpointError
from mpp.training.checkpoint import CheckpointStore
from mpp.training.inert import check_inert, only_data


class Evil:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


Write = Callable[[Any, Path], None]


def by_torch(value: Any, path: Path) -> None:
    torch.save({"state": value, "weight": torch.zeros(3)}, path)


def by_old_torch(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def by_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=4))


@pytest.mark.parametrize("write", [by_torch, by_old_torch, by_pickle])
@pytest.mark.parametrize(
    "name",
    ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scheduler.bin", "pytorch_model/m_states.pt"],
)
def test_a_pickle_that_calls_is_refused_with_a_right_manifest_too(tmp_path: Path, name: str, write: Write) -> None:
    marker = tmp_path / "marker"
    store = CheckpointStore(tmp_path / "checkpoints", Accelerator())

    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        write(Evil(marker), folder / name)

    store.save({"step": 1}, plant)
    with pytest.raises(CheckpointError, match=f"{name} is refused"):
        store.latest()
    assert not marker.exists()
    assert (store.folder / "step-000000001").is_dir(), "it is for a person to look at"


def test_what_it_would_call_is_named(tmp_path: Path) -> None:
    by_torch(Evil(tmp_path / "marker"), tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match=r"optimizer.bin is refused, loading it would call posix\.system"):
        check_inert(tmp_path)


@pytest.mark.parametrize("name", ["fast.so", "fast.pyd", "sitecustomize.py", "model.pickle", "a.pth", "plain"])
def test_files_of_no_kind_that_a_checkpoint_has_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no files of its kind"):
        check_inert(tmp_path)


def test_what_accelerate_writes_is_data_and_is_checked_without_reading_the_tensors(tmp_path: Path) -> None:
    accelerator = Accelerator()
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    accelerator.free_memory()
    assert len(list(tmp_path.iterdir())) == 3
    check_inert(tmp_path)


def test_within_the_guard_a_caller_cannot_ask_for_more_and_after_it_all_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_torch(Evil(tmp_path / "marker"), tmp_path / "a.pt")
    states = {"numpy": np.random.get_state(), "python": random.getstate(), "torch": torch.get_rng_state()}
    torch.save(states, tmp_path / "b.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before = dict(os.environ), set(torch.serialization.get_safe_globals())
    with only_data():
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "a.pt", weights_only=False)
        assert torch.load(tmp_path / "b.pt", weights_only=False)["python"] == states["python"]
    assert (dict(os.environ), set(torch.serialization.get_safe_globals())) == before
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_checkpoint_is_data_unless_its_table_of_contents_calls(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as sharded

    sharded.save({"a": torch.ones(3), "b": 5, "c": {"d": torch.zeros(2, dtype=torch.bfloat16)}}, checkpoint_id=tmp_path)
    check_inert(tmp_path)
    loaded = {"a": torch.zeros(3), "b": 0}
    with only_data():
        sharded.load(loaded, checkpoint_id=tmp_path)
    assert loaded["b"] == 5 and loaded["a"].tolist() == [1, 1, 1]
    for hostile in (Evil(tmp_path / "marker"), io.StringIO, getattr):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(hostile))
        with pytest.raises(CheckpointError, match=r"\.metadata is refused, loading it would call"):
            check_inert(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_weights_need_no_pickle(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "manifest.json").write_text("{}")
    check_inert(tmp_path)
