"""Figures without learning: those of one colour are perfect, they are computed once, and not for labels."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpp import shard
from mpp.config import resolve
from mpp.stream.mixture import open_mixture
from mpp.training.baseline_figures import note_baselines
from mpp.training.recipe import PretrainConfig
from mpp.training.runs import Run
from mpp.training.stops import StopSignals


@pytest.fixture
def gray(tmp_path: Path) -> Path:
    """Shards of twenty images of one gray."""
    for number in range(20):
        file = tmp_path / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (100, 100, 100)).save(file)
    assert shard.main([str(tmp_path / "images"), str(tmp_path / "set"), "workers=0", "labels=none"]) == 0
    return tmp_path / "set"


def note(shards: Path, out: Path, vit: dict[str, Any], **changes: Any) -> Path:
    """Note the figures of a run as its beginning does."""
    tree = {"shards": str(shards), "out": str(out), "vit": vit, "view": {"crop": "none"}, **changes}
    settings = resolve(PretrainConfig, tree)
    run = Run(out, settings)
    with StopSignals() as stops:
        note_baselines(run, open_mixture(settings.shards, settings.split), settings, stops)
    run.close("finished")
    return out / "baselines.json"


def test_on_images_of_one_colour_nothing_is_left_to_learn(gray: Path, tmp_path: Path, tiny_vit: dict[str, Any]) -> None:
    path = note(gray, tmp_path / "run", tiny_vit)
    figures = json.loads(path.read_text())
    assert figures["majority_accuracy"] == figures["visible_mean_accuracy"] == figures["interpolation_accuracy"] == 1
    assert figures["marginal_loss"] == pytest.approx(0, abs=1e-6)
    path.write_text("kept")
    assert note(gray, tmp_path / "run", tiny_vit).read_text() == "kept"


def test_a_run_on_labels_has_none(gray: Path, tmp_path: Path, tiny_vit: dict[str, Any]) -> None:
    assert not note(gray, tmp_path / "run", tiny_vit, task={"kind": "classification"}).exists()
