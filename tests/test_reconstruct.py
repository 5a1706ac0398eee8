"""``mpp reconstruct`` as a person types it: a picture of a run, one message for what is no run."""

from pathlib import Path

import pytest
from PIL import Image

from mpp.reconstruct import main


def test_a_run_becomes_a_picture(tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "picture.png"
    assert main([str(tiny_run), str(picture), "images=2"]) == 0
    assert capfd.readouterr().out == f"{picture}\n"
    with Image.open(picture) as image:
        assert min(image.size) > 100


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["RUN", "PICTURE", "image=2"], 2, "did you mean images?"),
        (["RUN", "PICTURE", "images=0"], 2, "images"),
        (["missing", "PICTURE"], 4, "missing is no run"),
        (["empty", "PICTURE"], 4, "empty is no run"),
        (["begun", "PICTURE"], 4, "begun has no checkpoint"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_picture(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RUN").symlink_to(tiny_run)
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun", "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    assert main(words) == code
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert message in error and "fix: " in error and "Traceback" not in error
    assert not Path("PICTURE").exists()
