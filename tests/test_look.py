"""``mpp look`` as a person types it: one page, never in the place of something else."""

import os
from pathlib import Path

import pytest

from mpp.look import main


def test_the_page_is_look_html_in_the_current_folder_and_replaces_its_like(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_shards)]) == 0
    assert capfd.readouterr().out == "look.html\n"
    first = Path("look.html").read_bytes()
    assert main([str(tiny_shards)]) == 0
    assert Path("look.html").read_bytes() == first
    assert os.listdir() == ["look.html"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "shards: required"),
        (["SHARDS", "page.html", "pages=2"], 2, "did you mean page?"),
        (["missing"], 3, "no shards here"),
        (["missing", "nowhere/page.html"], 2, "there is no folder nowhere"),
        (["SHARDS", "notes.txt"], 2, "notes.txt exists and is no page of mpp look"),
        (["SHARDS", "SHARDS"], 2, "Is a directory"),
        (["SHARDS", "x" * 300], 2, "File name too long"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_page(
    words: list[str],
    code: int,
    message: str,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("SHARDS").symlink_to(tiny_shards)
    Path("notes.txt").write_text("<!doctype html>\nmine")
    assert main(words) == code
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert message in error and "fix: " in error and "Traceback" not in error
    assert sorted(os.listdir()) == ["SHARDS", "notes.txt"] and Path("notes.txt").read_text() == "<!doctype html>\nmine"


def test_a_disk_without_room_ends_with_7_and_leaves_the_old_page(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main([str(tiny_shards), str(page)]) == 0
    before = page.read_bytes()

    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main([str(tiny_shards), str(page)]) == 7
    assert "No space left on device" in capfd.readouterr().err
    assert page.read_bytes() == before and os.listdir(tmp_path) == ["page.html"]
