"""What a run leaves of its odd steps: a file to replay each that was skipped, and a warning for a leap."""

import json
from pathlib import Path
from typing import Any

import pytest

from mpp.config import resolve
from mpp.errors import NumericsError
from mpp.stream.mixture import open_mixture
from mpp.training.finite import Judged
from mpp.training.oddities import Oddities
from mpp.training.pretraining import PretrainConfig
from mpp.training.runs import Run

NAN = float("nan")


@pytest.fixture
def settings(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> PretrainConfig:
    tree = {"shards": str(tiny_shards), "out": str(tmp_path / "run"), "vit": tiny_vit, "global_batch": 16}
    return resolve(PretrainConfig, tree)


def test_a_skipped_step_leaves_its_samples_and_settings(
    settings: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = open_mixture(settings.shards, "train").order(settings.seed, settings.global_batch)
    run, saved = Run(tmp_path / "run", settings), list[int]()
    odd = Oddities(run, settings, order, 2, lambda: saved.append(1))
    odd.note(Judged(2, 1.5, float("inf")), last=False)
    facts = json.loads((tmp_path / "run/replay-000000002.json").read_text())
    assert (facts["step"], facts["loss"], facts["gradient_norm"], facts["world"]) == (2, 1.5, "inf", 2)
    assert facts["ids"] == [order.draw(range(1, 2), rank, 2).ids.tolist() for rank in (0, 1)]
    assert resolve(PretrainConfig, facts["settings"]) == settings
    assert "step 2 is skipped" in capsys.readouterr().err
    assert not saved
    with pytest.raises(NumericsError, match="loss is not finite at step 3"):
        odd.note(Judged(3, NAN, NAN), last=True)
    assert saved == [1]
    run.close("failed")


def test_other_processes_write_and_say_nothing(
    settings: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = open_mixture(settings.shards, "train").order(settings.seed, settings.global_batch)
    Oddities(None, settings, order, 2, lambda: None).note(Judged(2, NAN, NAN), last=False)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_leaps_is_said_once(
    settings: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = open_mixture(settings.shards, "train").order(settings.seed, settings.global_batch)
    run = Run(tmp_path / "run", settings)
    odd = Oddities(run, settings, order, 1, lambda: None)
    for step in range(1, 131):
        odd.note(Judged(step, 100.0 if step > 128 else 1.0, 1.0), last=False)
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "step 129: loss 100 is 6 sigma above" in said
    run.close("failed")
