"""``mpp-shard`` on real images, and its answers to bad command lines."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mpp.shard import main
from mpp.shards.shardset import open_shards
from mpp.shards.verification import verify


def test_class_folders_of_real_images(data: Path, tmp_path: Path) -> None:
    assert main([str(data / "imagenette"), str(tmp_path / "out")]) == 0
    assert {split: open_shards(tmp_path / "out", split).samples for split in ("train", "test")} == {
        "train": 3000,
        "test": 1000,
    }
    assert len(open_shards(tmp_path / "out", "train").classes or ()) == 10
    assert verify(tmp_path / "out", full=True).problems == ()


@pytest.mark.slow
def test_parquet_files_of_real_images(data: Path, tmp_path: Path) -> None:
    assert main([str(data / "cifar10"), str(tmp_path / "out")]) == 0
    train = open_shards(tmp_path / "out", "train")
    assert (train.samples, len(train.shards), open_shards(tmp_path / "out", "test").samples) == (50_000, 50, 10_000)
    assert train.classes is not None and train.classes[0] == "airplane"


def test_odd_images_end_with_valid_shards_and_a_table_of_refusals(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(data / "odd-images"), str(tmp_path / "out"), "workers=1"]) == 3
    output = capsys.readouterr()
    assert all(f"  {reason} " in output.out for reason in ("corrupt", "not_image", "too_large", "truncated"))
    assert "images were refused" in output.err and "Traceback" not in output.err
    assert verify(tmp_path / "out", full=True).problems == ()
    assert open_shards(tmp_path / "out", "train").samples > 150


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_odd_images_take_less_memory_than_600_mb(data: Path, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, mpp.shard\n"
        "assert mpp.shard.main(sys.argv[1:]) == 3\n"
        "lines = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line for line in lines if line.startswith('VmHWM')).split()[1])\n"
    )
    command = [sys.executable, "-c", program, str(data / "odd-images"), str(tmp_path / "out"), "workers=0"]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    assert int(output.splitlines()[-1]) < 600_000  # KiB, the listing and all images in one process


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["missing", "OUT"], 2, "no such folder"),
        (["empty", "OUT"], 3, "no images"),
        (["list.txt", "OUT"], 2, "is a file"),
        (["images"], 2, "out: required"),
        (["images", "OUT", "qualty=90"], 2, "did you mean quality?"),
        (["images", "OUT", "resize=big"], 2, "resize"),
        (["images", "OUT", "labels=folders"], 2, "lies in no class folder"),
        (["images", "images/OUT"], 2, "one inside the other"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_help_is_quick_and_without_torch() -> None:
    program = "import sys, mpp.shard\ntry: mpp.shard.main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    begin = time.monotonic()
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - begin < 2  # 0.2 s on an idle machine; 0.5 s is the promise
    assert "max_refused" in output
    assert not {"'torch'", "'datasets'", "'PIL'", "'pyarrow'"} & set(output.splitlines()[-1].strip("[]").split(", "))


def test_a_list_on_standard_input_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a b.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b.png\n")))
    assert main(["-", "out", "workers=0"]) == 0
    assert open_shards("out", "train").samples == 1


def test_the_parts_are_words_before_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "out"]) == 3 and "fix: mpp-shard plan SOURCE out" in capsys.readouterr().err
    assert main(["plan", "images", "out", "shard_samples=1"]) == 0
    for words in (["--task", "1/2"], ["--task=0/2"]):
        assert main(["run", "out", *words, "workers=0"]) == 0
    assert main(["finalize", "out"]) == 0
    capsys.readouterr()
    assert main(["status", "out"]) == 0 and "complete" in capsys.readouterr().out
    assert main(["run", "out", "--task", "2/2"]) == 2 and "the parts of 2 are 0 to 1" in capsys.readouterr().err
    assert main(["run", "out", "--tsk", "2/2"]) == 2
