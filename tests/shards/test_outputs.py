"""A file of a set is there whole or not at all, in a folder and in a store that fsspec knows."""

import os
import time
from pathlib import Path

import pytest

from mpp.errors import ConfigError, DiskError
from mpp.shards.outputs import LocalOutput, Output, RemoteOutput, open_output, temporary_file


@pytest.fixture(params=["local", "remote"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    if request.param == "local":
        return LocalOutput(tmp_path / "set")
    return RemoteOutput(f"file://{tmp_path}/set", tmp_path / "work")


def test_files_are_put_moved_in_listed_and_read(output: Output) -> None:
    before = time.time() - 2
    output.put("a/b/c.txt", b"one")
    output.put("a/b/c.txt", b"three")
    with temporary_file(output.work, "a/b/d.tar") as temporary:
        temporary.write_bytes(b"tar")
        output.move_in(temporary, "a/b/d.tar")
        assert not temporary.exists()
    files = output.files("a/b")
    assert {name: file.size for name, file in files.items()} == {"c.txt": 5, "d.tar": 3}
    assert all(file.written is not None and before < file.written for file in files.values())
    assert list(output.read_all(["a/b/c.txt", "a/b/d.tar"])) == [b"three", b"tar"]
    assert output.files("a/none") == {}
    with pytest.raises(FileNotFoundError):
        output.read("a/none")


def test_a_file_that_is_so_already_is_left_alone(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path)
    output.put("a", b"same")
    os.utime(tmp_path / "a", (1, 1))
    output.put("a", b"same")
    assert (tmp_path / "a").stat().st_mtime == 1


def test_what_is_being_built_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), temporary_file(tmp_path, "a/b.tar") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_path_is_a_folder_and_a_url_has_a_work_folder_beside_us(tmp_path: Path) -> None:
    assert open_output("x/y", None) == LocalOutput(Path("x/y"))
    first, second = (open_output(f"s3://{bucket}/set/", None) for bucket in ("one", "two"))
    assert first.work.name.startswith("set-") and first.work != second.work
    assert open_output("s3://bucket/set/", tmp_path) == RemoteOutput("s3://bucket/set", tmp_path)
    with pytest.raises(ConfigError, match="leave work= away"):
        open_output("folder", tmp_path)


def test_a_store_that_nobody_knows_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        RemoteOutput("nowhere://x", tmp_path).read("a")


def test_an_error_of_the_store_is_one_message_without_secrets(tmp_path: Path) -> None:
    output = RemoteOutput("http://user:s3cret@127.0.0.1:9/set", tmp_path)
    with pytest.raises(DiskError, match=r"OUT http://.*127\.0\.0\.1:9/set: ") as caught:
        output.read("a")
    assert "s3cret" not in str(caught.value) + output.place("a")


def test_files_that_vanish_while_a_folder_is_looked_at_do_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, scandir = LocalOutput(tmp_path), os.scandir
    output.put("a/stays", b"x")
    output.put("a/goes", b"x")

    class Vanishing(list[os.DirEntry[str]]):
        def __enter__(self) -> "Vanishing":
            (tmp_path / "a/goes").unlink(missing_ok=True)
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def slow(folder: Path) -> Vanishing:
        with scandir(folder) as entries:
            return Vanishing(entries)

    monkeypatch.setattr(os, "scandir", slow)
    assert list(output.files("a")) == ["stays"]
