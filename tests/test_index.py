"""``mpp index`` makes a set of others' tars, says what is in it and what comes next, and ends with the right code."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp import verify
from mpp.index import main


@pytest.fixture
def tars(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """Two tars of three images, with two classes."""
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"tars/{shard}.tar", "w") as tar:
            for number in range(3):
                for kind, data in (("jpg", jpeg(3 * shard + number)), ("cls", b"%d" % (number % 2))):
                    info = tarfile.TarInfo(f"{number}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "tars"


def test_tars_become_a_set_and_the_same_command_does_it_once(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for times, command in enumerate(([str(tars), str(out), "workers=2"], [f"{tars}/{{0..1}}.tar", str(out)])):
        assert main(command) == 0
        said = capsys.readouterr()
        assert said.out.splitlines() == [
            f"{out}: train, 2 shards, 6 samples, 2 classes",
            f"next: mpp pretrain shards={out} out=runs/first",
        ]
        assert ("indexing 2 tars, once" in said.err) == (times == 0)
    assert verify.main([str(out), "full=true", "workers=0"]) == 0


def test_settings_choose_split_and_labels(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tars), str(tmp_path / "out"), "split=val", "labels=none", "workers=0"]) == 0
    assert "validation, 2 shards, 6 samples, no labels" in capsys.readouterr().out


def test_mistakes_end_with_2_and_damage_with_3(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for code, words in (
        (2, [str(tars)]),
        (2, [str(tars), out, "labels=cls"]),
        (2, ["https://me:sesame@host/x.tar", out]),
        (2, ["pipe:touch x.tar", out]),
        (3, [str(tars / "9.tar"), out]),
        (3, [str(tars), out, "split=../x"]),
    ):
        assert main(words) == code
        said = capsys.readouterr()
        assert "error: " in said.err and "sesame" not in said.err + said.out
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[:2048])
    assert main([str(tars), out, "workers=0"]) == 3
    assert "1.tar: cut off at byte 2048" in capsys.readouterr().err
