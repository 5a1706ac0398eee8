"""``mpp pretrain`` as a person types it: a run from a file and overrides, one message for bad input."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpp.pretrain import main
from mpp.training.runs import read_metrics


@pytest.fixture
def words(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> list[str]:
    """A command line of two steps into tmp_path/run."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"vit": tiny_vit, "steps": 2, "global_batch": 16, "stream": {"workers": 0}}))
    return ["--config", str(file), f"shards={tiny_shards}", f"out={tmp_path / 'run'}"]


def test_an_override_wins_over_the_file_and_the_run_leaves_a_backbone(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "steps=3"]) == 0
    assert [entry["step"] for entry in read_metrics(tmp_path / "run")] == [3]
    assert (tmp_path / "run" / "backbone.safetensors").is_file()


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (["stpes=3"], 2, "did you mean steps?"),
        (["steps=many", "vit.width=0", "task.target.kind=shape"], 2, "3 setting(s) cannot be used"),
        (["vit.name=vit_tinny_patch16_224"], 2, "fix: vit.name=vit_tiny_patch16_224"),
        (["task.target.kind=downsized", "task.target.side=4"], 2, "side 4 does not divide the patch size"),
        (["shards=missing"], 3, "no shards here"),
        (["split=val"], 3, "no split 'val', it has test, train"),
        (["probe.every=1", "probe.images=29"], 3, "fix: probe.images=30"),
        (["global_batch=61"], 3, "60 samples do not fill one global batch of 61"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_folder(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: list[str], code: int, message: str
) -> None:
    assert main([*words, *wrong]) == code
    assert_one_message(capfd.readouterr().err, message)
    assert not (tmp_path / "run").exists()


def test_a_run_is_probed_where_that_is_asked_for(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "probe.every=1", "probe.shots=[5]", "probe.probes=[fewshot]"]) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "probe/few-shot 5/patch_mean" in line]
    assert [line["step"] for line in lines] == [0, 1, 2]


def test_classification_needs_labels(
    words: list[str], bare_tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"shards={bare_tiny_shards}", "task.kind=classification"]) == 3
    assert_one_message(capfd.readouterr().err, "carries no labels")
    assert not (tmp_path / "run").exists()


def test_a_shard_that_was_cut_is_named_before_the_first_step(
    words: list[str], tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(tiny_shards, damaged)
    with (damaged / "train" / "train-000000.tar").open("r+b") as tar:
        tar.truncate(512)
    assert main([*words, f"shards={damaged}"]) == 3
    assert_one_message(capfd.readouterr().err, "train-000000.tar: 0 of 10 samples")
    assert not (tmp_path / "run").exists()


def assert_one_message(error: str, message: str) -> None:
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert message in error and "fix: " in error and "Traceback" not in error
