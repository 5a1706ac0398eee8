"""A lock excludes other holders and ends with its file; files and folders can both be synced."""

from pathlib import Path

import pytest

from mpp.disk import fsync_path, lock_file


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
