"""A lock excludes other holders and ends with its file; files and folders can both be synced."""

import errno
import fcntl
from pathlib import Path

import pytest

from mpp.disk import cache_folder, disk_errors, fsync_path, lock_file
from mpp.errors import ConfigError, DiskError


def test_a_lock_is_held_while_its_file_is_open(tmp_path: Path) -> None:
    with lock_file(tmp_path / "lock"):
        with pytest.raises(BlockingIOError):
            lock_file(tmp_path / "lock")
        lock_file(tmp_path / "other").close()
    lock_file(tmp_path / "lock").close()
    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "missing/lock")


def test_files_and_folders_can_be_synced_and_a_missing_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    fsync_path(tmp_path / "file")
    fsync_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "missing")


def test_a_full_disk_is_one_message_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"gone/x: cannot write, .* bytes free"), disk_errors(tmp_path / "gone/x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match=r"s3://b/x: cannot write"), disk_errors("s3://b/x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no")


def test_a_file_system_that_cannot_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.raises(ConfigError, match="this file system cannot lock files"):
        lock_file(tmp_path / "lock")


def test_a_shared_lock_excludes_only_those_who_want_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, shared=True), lock_file(path, shared=True), pytest.raises(BlockingIOError):
        lock_file(path)
    lock_file(tmp_path / "lock").close()


def test_the_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MPP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mpp"
    monkeypatch.setenv("MPP_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
