"""Checkpoints: atomic, verified, never deleted when damaged, and written again where the disk was full."""

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from mpp.disk import fsync_path
from mpp.errors import CheckpointError, DiskError
from mpp.training.checkpoint import CheckpointStore, complete_checkpoints, newest_checkpoint, verify

FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "shards/extra.json")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Accelerator())


def write_state(folder: Path, value: int) -> None:
    (folder / "shards").mkdir()
    save_file({"a": torch.full((3000,), value)}, folder / "model.safetensors")
    torch.save({"a": torch.full((3000,), value)}, folder / "optimizer.bin")
    torch.save({"a": torch.full((3000,), value)}, folder / "random_states_0.pkl")
    (folder / "shards" / "extra.json").write_text(json.dumps([value] * 3000))


def save(store: CheckpointStore, step: int) -> Path:
    assert store.save({"step": step, "lanes": (1, 2)}, lambda folder: write_state(folder, step))
    return store.folder / f"step-{step:09d}"


def found_step(store: CheckpointStore) -> int | None:
    found = store.latest()
    return None if found is None else int(found[1]["step"])


def test_the_newest_is_found_and_two_are_kept(store: CheckpointStore) -> None:
    assert store.latest() is None
    for step in (1, 2, 10):
        save(store, step)
    path, facts = store.latest() or (Path(), {})
    assert path.name == "step-000000010"
    assert facts == {"step": 10, "lanes": [1, 2]}
    assert [folder.name for folder in complete_checkpoints(store.folder)] == ["step-000000010", "step-000000002"]
    assert sorted(os.listdir(store.folder)) == ["step-000000002", "step-000000010"]


def test_everything_is_on_the_disk_before_the_name_is_and_the_name_before_the_oldest_goes(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    save(store, 2)
    events: list[str] = []

    def synced(path: Path) -> None:
        fsync_path(path)
        events.append(str(path.relative_to(store.folder)))

    monkeypatch.setattr("mpp.training.checkpoint.fsync_path", synced)
    monkeypatch.setattr("mpp.training.checkpoint.reach", lambda place, step: events.append(place))
    save(store, 3)
    new = ".step-000000003.writing"
    assert events[:3] == ["save.begin", "save.folder", "save.written"]
    assert sorted(events[3:8]) == sorted([*(f"{new}/{name}" for name in FILES), f"{new}/shards"])
    written = ["save.synced", f"{new}/manifest.json", new, "save.manifest"]
    assert events[8:12] == written
    assert events[12:] == ["save.rename", "save.renamed", ".", "save.safe", "save.removing", "save.end"]


def test_the_manifest_names_every_file_and_what_wrote_it(store: CheckpointStore) -> None:
    path = save(store, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(FILES)
    for name, (size, digest) in manifest["files"].items():
        data = (path / name).read_bytes()
        assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["versions"]["torch"] == torch.__version__
    assert {"mpp", "python", "accelerate"} <= manifest["versions"].keys()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(len(data[4096:8192]))
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_another_beside(path: Path) -> None:
    (path.parent / f"{path.stem}.so").write_bytes(b"\x7fELF")


def empty_json(path: Path) -> None:
    path.write_text("{}")


def other_facts(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


Damage = Callable[[Path], None]
HARMS: list[Damage] = [flip, zero_page, cut, remove, empty, replace_by_a_link, replace_by_a_folder, put_another_beside]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in HARMS]
    + [("manifest.json", damage) for damage in (flip, cut, remove, empty, empty_json, other_facts)],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    store: CheckpointStore, name: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    damage(save(store, 2) / name)
    assert found_step(store) == 1
    assert (store.folder / "step-000000002.corrupt").is_dir()
    assert capsys.readouterr().out.count("warning: ") == 1
    assert found_step(store) == 1
    assert capsys.readouterr().out == "", "it is said once"


def test_where_all_are_damaged_each_reason_is_given(store: CheckpointStore) -> None:
    flip(save(store, 1) / "optimizer.bin")
    cut(save(store, 2) / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        store.latest()
    assert "step-000000001: optimizer.bin does not have the sha256" in str(caught.value)
    assert "step-000000002: model.safetensors is missing or not of" in str(caught.value)


def test_where_all_were_damaged_the_run_does_not_begin_anew_by_itself(store: CheckpointStore) -> None:
    flip(save(store, 1) / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            store.latest()


def test_a_step_that_is_damaged_again_and_again_is_set_aside_each_time(store: CheckpointStore) -> None:
    save(store, 1)
    for _ in range(3):
        flip(save(store, 2) / "model.safetensors")
        assert found_step(store) == 1
    aside = [f"step-000000002.corrupt{end}" for end in ("", "-2", "-3")]
    assert sorted(os.listdir(store.folder)) == ["step-000000001", *aside]


def test_what_killed_saves_left_is_removed_and_nothing_of_others(store: CheckpointStore) -> None:
    save(store, 1)
    for name in (".step-000000002.writing", ".step-000000001.removing", ".step-2.writing", ".other.writing", "mine"):
        (store.folder / name).mkdir()
        (store.folder / name / "file").write_text("x")
    assert found_step(store) == 1
    assert sorted(os.listdir(store.folder)) == [".other.writing", ".step-2.writing", "mine", "step-000000001"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


WRITERS: list[Callable[[Path], object]] = [
    lambda folder: save_file({"a": torch.zeros(100_000)}, folder / "model.safetensors"),
    lambda folder: torch.save(torch.zeros(100_000), folder / "optimizer.bin"),
    lambda folder: torch.save([torch.zeros(100)] * 5 + [torch.zeros(100_000)], folder / "optimizer.bin"),
    lambda folder: (folder / "file").write_bytes(bytes(100_000)),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_is_full_is_said_so_and_loses_nothing(
    store: CheckpointStore, write: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    store.check_room(1_000_000)

    def attempt(step: int, *, last: bool = False) -> bool:
        with files_of_at_most(50_000):
            return store.save({"step": step}, lambda folder: write(folder) and None, last=last)

    assert not attempt(2)
    said = capsys.readouterr().out
    for part in ("warning: cannot save", str(store.folder), "bytes are needed", "are free", "step-000000001 stands"):
        assert part in said, said
    assert os.listdir(store.folder) == ["step-000000001"], "nothing is left of it"
    assert found_step(store) == 1
    save(store, 3)
    assert not attempt(4) and not attempt(5)
    with pytest.raises(DiskError, match=r"cannot save.*bytes are needed.*step-000000003 stands"):
        attempt(6)
    with pytest.raises(DiskError, match="step-000000003 stands"):
        CheckpointStore(store.folder, store.accelerator).save({"step": 7}, _full, last=True)
    assert newest_checkpoint(store.folder.parent).name == "step-000000003"


def _full(folder: Path) -> None:
    (folder / "half").write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_an_error_that_is_not_of_the_disk_is_not_hidden(store: CheckpointStore) -> None:
    def fail(folder: Path) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        store.save({"step": 1}, fail)


def test_without_room_a_run_does_not_begin(store: CheckpointStore) -> None:
    store.check_room(1000)
    with pytest.raises(DiskError, match=r"checkpoints: no room .* bytes are needed, [\d,]+ are free"):
        store.check_room(10**16)
    save(store, 1)
    store.check_room(10**16)  # now it is known how large they are


def test_a_manifest_names_files_of_its_own_folder_only(store: CheckpointStore, tmp_path: Path) -> None:
    path = save(store, 1)
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["../../outside"] = [1, hashlib.sha256(b"x").hexdigest()]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    with pytest.raises(CheckpointError, match=r"\.\./\.\./outside is missing"):
        verify(path)
