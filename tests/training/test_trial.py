"""A folder is tried as a run uses it, and nothing stays in it."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.errors import DiskError
from mpp.training import trial
from mpp.training.trial import disk_speed, existing, free_bytes, try_commit, try_lock

TRIALS: list[Callable[[Path], object]] = [disk_speed, try_commit, try_lock]


def test_a_good_folder_passes_and_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_MOST", 2**24)
    speed = disk_speed(tmp_path)
    assert speed.write > 1e5 and speed.read > 1e5
    try_commit(tmp_path)
    try_lock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert free_bytes(tmp_path) > 0


@pytest.mark.parametrize("attempt", TRIALS)
def test_a_folder_that_cannot_be_written_is_named(attempt: Callable[[Path], object]) -> None:
    with pytest.raises(DiskError, match="/sys"):
        attempt(Path("/sys"))


def test_a_limit_for_the_size_of_files_is_found(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(DiskError, match="ulimit -f"):
            disk_speed(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_two_can_have_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LOCK", "pass")  # another process is never refused
    with pytest.raises(DiskError, match="two processes can have the same lock"):
        try_lock(tmp_path)


def test_a_lock_that_stays_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LOCK", "raise SystemExit(1)")  # another process is always refused
    with pytest.raises(DiskError, match="stays"):
        try_lock(tmp_path)


def test_of_a_folder_that_is_not_there_the_one_above_is_tried(tmp_path: Path) -> None:
    assert existing(tmp_path / "runs" / "b16") == tmp_path
    assert existing(Path(".")) == Path.cwd()
