"""``mpp duplicates`` reports on a set, in several processes, and says what is wrong with anything else."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp import shard
from mpp.duplicates import main
from mpp.shards.near_duplicates import TABLE


def test_a_test_image_that_is_in_train_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        (tmp_path / "source" / split).mkdir(parents=True)
        for number in range(4):
            seed = (number, number < 3 and split == "test")  # the last is the same in both
            pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "source" / split / f"{number}.jpg")
    out = str(tmp_path / "out")
    assert shard.main([str(tmp_path / "source"), out, "labels=none", "workers=0"]) == 0
    capsys.readouterr()
    assert main([out, "distance=2", "workers=2"]) == 0
    shown = capsys.readouterr()
    assert "1 of 4 test images have a near duplicate in train" in shown.out
    assert "test/3.jpg" in shown.out and "train/3.jpg" in shown.out
    assert "hashing: 8 of 8 images" in shown.err
    assert (tmp_path / "out" / TABLE).is_file()


@pytest.mark.parametrize(("words", "code", "why"), [([], 3, "no shards here"), (["distance=8"], 2, "distance: ")])
def test_what_cannot_be_done_is_said(
    tmp_path: Path, words: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *words]) == code
    assert why in capsys.readouterr().err
