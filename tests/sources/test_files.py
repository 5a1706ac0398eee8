"""Files of a source: listed bytewise without following loops, judged by name or content, read within bounds."""

import errno
import os
from pathlib import Path

import pytest

from mpp.errors import DataError
from mpp.sources import files
from mpp.sources.entries import UNKNOWN
from mpp.sources.files import file_size, has_signature, is_image, named_as_image, printable, read_file, walk


def test_files_are_walked_in_bytewise_order_links_but_not_loops_included(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "b-c.jpg", "a.jpg", "B.jpg", ".hidden/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "b", tmp_path / "linked")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    os.symlink("itself", tmp_path / "itself")
    listed = list(walk(str(tmp_path)))
    assert listed == ["B.jpg", "a.jpg", "b/10.jpg", "b/2.jpg", "b-c.jpg", "itself"]


def test_links_are_followed_to_what_lies_elsewhere_and_no_file_is_listed_twice(tmp_path: Path) -> None:
    for name in ("root/a/1.jpg", "far/deep/2.jpg", "far/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    for name, target in (("b", "../far/deep"), ("c", "../far"), ("d", "../far/deep"), ("e", "a"), ("f", "../far")):
        os.symlink(target, root / name)
    os.symlink("../../far/deep", root / "a" / "z")
    assert list(walk(str(root))) == ["a/1.jpg", "a/z/2.jpg", "c/3.jpg"]
    os.symlink(root, tmp_path / "entrance")
    assert list(walk(str(tmp_path / "entrance"))) == ["a/1.jpg", "a/z/2.jpg", "c/3.jpg"]
    os.symlink(tmp_path, root / "a" / "all")
    assert list(walk(str(root))) == ["a/1.jpg", "a/all/far/3.jpg", "a/all/far/deep/2.jpg"]


def test_folders_as_deep_as_the_system_allows_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = (4000 - len(str(tmp_path))) // 2
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("x").touch()
    assert list(walk(str(tmp_path))) == ["d/" * depth + "x"]
    Path("x").unlink()
    for _ in range(depth):  # too deep for those who clean up
        os.chdir("..")
        os.rmdir("d")


def test_a_folder_that_vanishes_while_it_is_walked_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").mkdir()
    names = walk(str(tmp_path))
    assert next(names) == "a"
    (tmp_path / "b").rmdir()
    with pytest.raises(DataError, match="b: cannot list it, No such file"):
        next(names)


def test_an_image_is_known_by_its_extension_or_else_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    (tmp_path / "LICENSE").write_text("not an image")
    assert is_image(tmp_path, "missing.JPEG") and is_image(tmp_path, "photo")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("pipe", tmp_path / "link")
    assert not any(is_image(tmp_path, name) for name in ("notes.txt", "LICENSE", "missing", "pipe", "link"))
    assert [named_as_image(name) for name in ("v1.0/a", "a.b/c.PNG", "c.tar", "dot.", ".jpg")] == [
        None, True, False, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"BM\x36\x0c\0\0\0\0\0\0\x36\0\0\0", True),
        (b"BMW images, 2024", False),
        (b"P6\n16 16\n255\n", True),
        (b"P1 # a comment", True),
        (b"P1", False),
        (b"P3R notes", False),
        (b"Pf\n3 4\n", True),
        (b"RIFF\x24\0\0\0WEBPVP8", True),
        (b"RIFF\x24\0\0\0WAVEfmt", False),
    ],
)
def test_texts_are_not_taken_for_images(head: bytes, expected: bool) -> None:
    assert has_signature(head) == expected


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file") == b"12345"
    assert file_size(tmp_path / "file") == 5
    assert file_size(tmp_path / "missing") == UNKNOWN
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 4)
    with pytest.raises(OSError) as caught:
        read_file(tmp_path / "file")
    assert caught.value.errno == errno.EFBIG


def test_a_file_is_read_on_where_the_system_gives_less_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    read = os.read
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 3)))
        assert read_file(tmp_path / "file") == b"0123456789"


def test_a_file_that_is_longer_than_it_was_is_not_taken() -> None:
    assert os.path.getsize("/proc/self/status") == 0
    with pytest.raises(OSError, match="it grew while it was read"):
        read_file("/proc/self/status")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


def test_names_can_be_printed_whatever_is_in_them() -> None:
    assert printable("日本 ü.jpg") == "日本 ü.jpg"
    assert printable(os.fsdecode(b"\xff.jpg")) == "\\xff.jpg"
    assert printable("a\0b\n\x1b[2J\u202e") == "a\\x00b\\n\\x1b[2J\\u202e"
    printable("\ud800").encode()
