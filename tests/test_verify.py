"""``mpp verify`` says what is wrong, where, and how to mend it; the mending works."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp import shard
from mpp.verify import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.jpg")
    return root


def test_a_damaged_set_is_reported_and_mended_by_the_same_command(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), str(tmp_path / "out"), "shard_samples=4", "workers=0"]
    assert shard.main(command) == 0
    arguments = [str(tmp_path / "out"), "full=true", "workers=2"]
    assert main(arguments) == 0
    assert "3 shards, 12 samples" in capsys.readouterr().out
    tar = tmp_path / "out/train/train-000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[600] ^= 4
    tar.write_bytes(raw)
    assert main([str(tmp_path / "out"), "workers=0"]) == 0
    capsys.readouterr()
    assert main(arguments) == 3
    output = capsys.readouterr()
    assert "train-000001.tar: sha256 differs" in output.out
    assert "fix: delete the named shards" in output.err
    tar.unlink()
    assert shard.main(command) == 0
    assert main(arguments) == 0


def test_folders_that_are_no_sets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 3
    assert "no shards here" in capsys.readouterr().err
    assert main([]) == 2
