"""What a run tells: lines on the disk and values for trackers at every log step, pictures when they are due."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mpp.config import config, resolve
from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig, build_task
from mpp.model.vit import Vit, VitConfig
from mpp.stream.loader import StreamConfig
from mpp.stream.mixture import open_mixture
from mpp.stream.views import ViewConfig
from mpp.training import reporting
from mpp.training.reporting import Painter, Reporter, open_reporter, reconstruction_painter
from mpp.training.runs import Run
from mpp.training.trackers import Trackers


@config
class Nothing:
    """Settings of a pretend run."""

    seed: int = 0


class Heard(Trackers):
    """A stub: trackers that keep what they are told."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.pictures: list[int] = []
        self.closed = False

    def log(self, values: Any, step: int) -> None:
        self.values[step] = values

    def picture(self, name: str, pixels_HWC: Any, step: int) -> None:
        self.pictures.append(step)

    def close(self) -> None:
        self.closed = True


def report(folder: Path, painter: Painter | None, steps: list[int], start: int = 0) -> Heard:
    run, heard = Run(folder, Nothing()), Heard()
    reporter = Reporter(run, heard, painter, every=10, start=start)
    for step in steps:
        reporter.log(step, 16 * step, {"loss": 0.5}, {"seconds_per_step": 2.0})
    reporter.close()
    run.close("finished")
    return heard


def test_values_go_to_the_disk_and_with_the_timing_to_trackers(tmp_path: Path) -> None:
    heard = report(tmp_path, None, [1, 2])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1]) == {
        "step": 2, "images_seen": 32, "loss": 0.5,
    }  # fmt: skip
    assert json.loads((tmp_path / "timing.jsonl").read_text().splitlines()[0]) == {"step": 1, "seconds_per_step": 2.0}
    assert heard.values[2] == {"loss": 0.5, "seconds_per_step": 2.0}
    assert heard.pictures == [] and heard.closed


def test_a_picture_comes_at_the_first_log_step_of_every_interval(tmp_path: Path) -> None:
    painter = lambda: np.zeros((1, 1, 3), np.uint8)  # noqa: E731
    assert report(tmp_path / "a", painter, [4, 8, 12, 16, 20, 24, 44, 48, 52]).pictures == [12, 20, 44, 52]
    assert report(tmp_path / "b", painter, [24, 28, 32], start=22).pictures == [32]


def test_the_painter_shows_the_same_images_as_the_weights_move(tiny_shards: Path, tiny_vit: dict[str, Any]) -> None:
    shards = open_mixture(str(tiny_shards), "train")
    task = build_task(MaskedPatchesConfig(), Vit(resolve(VitConfig, tiny_vit)), num_classes=None, seed=0).train()
    painter = reconstruction_painter(task, shards, ViewConfig(), StreamConfig(workers=0), Accelerator(cpu=True))
    assert painter is not None
    before, again = painter(), painter()
    assert before.shape == (3 * 8, 8 * 8, 3) and before.dtype == np.uint8
    assert (before == again).all() and len(np.unique(before[:8])) > 50
    torch.nn.init.normal_(task.head.weight)  # type: ignore[union-attr,arg-type]
    after = painter()
    assert (before[:16] == after[:16]).all() and (before[16:] != after[16:]).any()
    assert task.training


def test_there_is_nothing_to_paint_of_a_classification(tiny_shards: Path, tiny_vit: dict[str, Any]) -> None:
    shards = open_mixture(str(tiny_shards), "train")
    task = build_task(ClassificationConfig(), Vit(resolve(VitConfig, tiny_vit)), num_classes=3, seed=0)
    assert reconstruction_painter(task, shards, ViewConfig(), StreamConfig(workers=0), Accelerator(cpu=True)) is None


def test_divided_weights_are_not_painted(
    tiny_shards: Path, tiny_vit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_mixture(str(tiny_shards), "train")
    task = build_task(MaskedPatchesConfig(), Vit(resolve(VitConfig, tiny_vit)), num_classes=None, seed=0)
    monkeypatch.setattr(reporting, "divides_weights", lambda accelerator: True)
    assert reconstruction_painter(task, shards, ViewConfig(), StreamConfig(workers=0), Accelerator(cpu=True)) is None


def test_only_the_process_with_the_run_reports(tmp_path: Path) -> None:
    def painter() -> None:
        raise AssertionError("no tracker shows pictures")

    with open_reporter(None, "tensorboard", {}, {}, start=0, every=1, painter=painter) as reporter:
        assert reporter is None
    run = Run(tmp_path, Nothing())
    with open_reporter(run, None, {}, {"epochs": 2.5}, start=0, every=1, painter=painter) as reporter:
        assert reporter is not None
        reporter.log(1, 16, {"loss": 0.5}, {})
    run.close("finished")
    assert "0.5" in (tmp_path / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "derived.json").read_text()) == {"epochs": 2.5}
