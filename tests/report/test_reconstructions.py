"""Reconstructions: gray where masked, sources where replaced, predictions where corrupted, the image elsewhere."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.report.reconstructions import draw_reconstructions
from mpp.training.pretraining import pretrain
from mpp.training.recipe import PretrainConfig


def test_a_picture_of_a_run_is_written(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    draw_reconstructions(str(tiny_run), str(path), 100)  # more than the 60 images that there are
    with Image.open(path) as picture:
        assert picture.size[0] > 60 * picture.size[1] / 4


def test_a_run_without_patches_is_refused(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> None:
    tree = {
        "shards": str(tiny_shards),
        "out": str(tmp_path / "run"),
        "vit": tiny_vit,
        "task": {"kind": "classification"},
        "steps": 1,
        "global_batch": 4,
        "stream": {"workers": 0},
    }
    pretrain(resolve(PretrainConfig, tree))
    with pytest.raises(ConfigError, match="trained classification"):
        draw_reconstructions(str(tmp_path / "run"), str(tmp_path / "picture.png"), 4)


def test_a_folder_that_is_no_run_and_a_run_without_checkpoint_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        draw_reconstructions(str(tmp_path), str(tmp_path / "picture.png"), 4)
    (tmp_path / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="checkpoint"):
        draw_reconstructions(str(tmp_path), str(tmp_path / "picture.png"), 4)


def test_a_format_that_is_no_picture_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        draw_reconstructions(str(tiny_run), str(tmp_path / "picture.txt"), 4)
