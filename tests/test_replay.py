"""``mpp replay FILE`` says what was recorded, what it is now, and what is not finite."""

import json
from pathlib import Path

import pytest

from mpp.config import dump, resolve
from mpp.replay import main
from mpp.training.recipe import PretrainConfig
from mpp.training.runs import read_metrics


def test_a_step_of_a_run_is_taken_again(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mpp.plain_yaml import read_yaml

    loss = read_metrics(tiny_run)[-1]["loss"]
    file = tmp_path / "replay-000000002.json"
    settings = dump(resolve(PretrainConfig, read_yaml(tiny_run / "config.yaml")))
    file.write_text(json.dumps({"step": 2, "loss": loss, "gradient_norm": "nan", "world": 1, "settings": settings}))
    assert main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"recorded: step 2, loss {loss!r}, gradient norm nan" in shown
    assert f"replayed: step 2, loss {loss!r}, gradient norm" in shown
    assert "16 of 16" in shown and shown.count("(key ") == 16
    assert "not finite: 0 parameters" in shown


def test_a_file_that_is_none_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert "is no replay file" in capsys.readouterr().err
