"""Files of a source: listed bytewise without following loops, judged by name or content, read within bounds."""

import errno
import os
from pathlib import Path

import pytest

from mpp.shards import files
from mpp.shards.files import file_size, is_image, printable, read_file, walk


def test_files_are_walked_in_bytewise_order_links_but_not_loops_included(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a.jpg", "B.jpg", ".hidden/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "b", tmp_path / "linked")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    listed = list(walk(str(tmp_path)))
    assert listed == ["B.jpg", "a.jpg", "b/10.jpg", "b/2.jpg", "linked/10.jpg", "linked/2.jpg"]


def test_an_image_is_known_by_its_extension_or_else_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    (tmp_path / "LICENSE").write_text("not an image")
    assert is_image(tmp_path, "missing.JPEG") and is_image(tmp_path, "photo")
    assert not any(is_image(tmp_path, name) for name in ("notes.txt", "LICENSE", "missing"))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file") == b"12345"
    assert file_size(tmp_path / "file") == 5
    assert file_size(tmp_path / "missing") == 0
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 4)
    with pytest.raises(OSError) as caught:
        read_file(tmp_path / "file")
    assert caught.value.errno == errno.EFBIG


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert printable("日本.jpg") == "日本.jpg"
    assert printable(os.fsdecode(b"\xff.jpg")) == "\\xff.jpg"
