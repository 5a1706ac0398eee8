"""Pretraining runs: killed and continued they are the same run, to the bit; and on two processes as on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError, NumericsError
from mpp.training.backbone import load_backbone
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.pretraining import PretrainConfig, pretrain
from mpp.training.runs import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "image_size": [8, 8],
        "patch_size": 2,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "drop_path": 0.1,
    },
    "view": {"crop": "pad"},
    "optimizer": {"learning_rate": 0.003},
    "steps": 20,
    "global_batch": 16,
    "stream": {"workers": 0},
    "log_every": 1,
    "save_every": 5,
}


def settings(shards: Path, out: Path, **changes: Any) -> PretrainConfig:
    return resolve(PretrainConfig, merge({**TINY, "shards": str(shards), "out": str(out)}, changes))


def command(shards: Path, out: Path, *changes: str) -> list[str]:
    config = out.parent / "tiny.yaml"
    config.write_text(json.dumps(TINY))
    return [str(ROOT / "mpp" / "pretrain.py"), "--config", str(config), f"shards={shards}", f"out={out}", *changes]


def outcome(out: Path) -> tuple[str, dict[str, torch.Tensor]]:
    return (out / "metrics.jsonl").read_text(), load_backbone(str(out)).weights


def assert_same_run(first: Path, second: Path) -> None:
    (metrics, weights), (others, other_weights) = outcome(first), outcome(second)
    assert metrics == others
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert torch.equal(weights[name], other_weights[name]), name


@pytest.fixture(scope="module")
def undisturbed(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps from start to end."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(settings(tiny_shards, out))
    return out


def test_a_run_leaves_metrics_baselines_and_a_backbone(undisturbed: Path) -> None:
    metrics = read_metrics(undisturbed)
    assert [entry["step"] for entry in metrics] == list(range(1, 21))
    assert metrics[0]["loss"] == pytest.approx(6.238, abs=1e-3)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert json.loads((undisturbed / "baselines.json").read_text())["uniform_loss"] == pytest.approx(6.238, abs=1e-3)
    assert (undisturbed / "STATUS").read_text() == "finished\n"
    assert newest_checkpoint(undisturbed).name == "step-000000020"


def test_the_same_command_after_the_end_changes_nothing(
    undisturbed: Path, tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / "backbone.safetensors").stat().st_mtime_ns
    pretrain(settings(tiny_shards, undisturbed))
    assert "finished already" in capsys.readouterr().out
    assert (undisturbed / "backbone.safetensors").stat().st_mtime_ns == before


def test_workers_and_repetition_do_not_change_a_run(undisturbed: Path, tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", stream={"workers": 1, "threads": 2}))
    assert_same_run(undisturbed, tmp_path / "run")


def test_another_seed_is_another_run(undisturbed: Path, tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", seed=1))
    assert outcome(undisturbed)[0] != outcome(tmp_path / "run")[0]


def test_micro_batches_make_the_same_steps_up_to_rounding(undisturbed: Path, tiny_shards: Path, tmp_path: Path) -> None:
    calm = {"vit": {"drop_path": 0.0}}
    pretrain(settings(tiny_shards, tmp_path / "one", **calm))
    pretrain(settings(tiny_shards, tmp_path / "four", micro_batch=4, **calm))
    for one, four in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "four"), strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-4)


def kill_at(process: "subprocess.Popen[str]", out: Path, step: int, number: int = signal.SIGKILL) -> int:
    """Wait until the run has logged ``step``, kill its process group, return the exit code."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            os.killpg(process.pid, number)
            break
        time.sleep(0.01)
    process.communicate()
    return process.returncode


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def test_a_run_killed_twice_and_continued_is_the_same_run(undisturbed: Path, tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Many log lines between two checkpoints: the kill falls in the middle of an epoch and of an interval.
    for step in (8, 13):
        assert kill_at(start(command(tiny_shards, out)), out, step) == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, *command(tiny_shards, out)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "continuing from" in done.stdout
    assert_same_run(undisturbed, out)


def test_a_run_stopped_by_sigterm_saves_and_continues(undisturbed: Path, tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert kill_at(start(command(tiny_shards, out)), out, 7, signal.SIGTERM) == 143
    assert "stopped" in (out / "STATUS").read_text()
    assert int(newest_checkpoint(out).name[5:]) >= 7
    pretrain(settings(tiny_shards, out))
    assert_same_run(undisturbed, out)


def launcher(config: str) -> list[str]:
    return ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate" / config)]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu_2_processes.yaml", "cpu_2_processes_deepspeed.yaml"])
def test_two_processes_killed_and_continued_are_the_same_run(tiny_shards: Path, tmp_path: Path, config: str) -> None:
    if "deepspeed" in config:
        pytest.importorskip("deepspeed", reason='needs pip install -e ".[deepspeed]"')
    launch = launcher(config)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([sys.executable, *launch, *command(tiny_shards, whole)], check=True, cwd=ROOT)
    assert kill_at(start([*launch, *command(tiny_shards, cut)]), cut, 8) == -signal.SIGKILL
    subprocess.run([sys.executable, *launch, *command(tiny_shards, cut)], check=True, cwd=ROOT)
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_from_two_processes_to_one_and_back_the_steps_stay_the_same(tiny_shards: Path, tmp_path: Path) -> None:
    launch, calm = launcher("cpu_2_processes.yaml"), "vit.drop_path=0"  # stochastic depth differs by process
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    subprocess.run([sys.executable, *launch, *command(tiny_shards, whole, calm)], check=True, cwd=ROOT)
    timing = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert all(entry["data_wait_share_max"] >= entry["data_wait_share"] > 0 for entry in timing)
    kill_at(start([*launch, *command(tiny_shards, moved, calm)]), moved, 7)
    kill_at(start(command(tiny_shards, moved, calm)), moved, 13)
    subprocess.run([sys.executable, *launch, *command(tiny_shards, moved, calm)], check=True, cwd=ROOT)
    for here, there in zip(read_metrics(whole), read_metrics(moved), strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)


def test_a_run_says_where_its_time_went(undisturbed: Path) -> None:
    timing = [json.loads(line) for line in (undisturbed / "timing.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in timing] == list(range(1, 21))
    for name in ("images_per_second", "data_wait_share", "read_ms_per_image", "view_ms_per_image"):
        assert all(entry[name] > 0 for entry in timing), name
    assert all(entry["skipped"] == entry["retries"] == 0 for entry in timing)


def test_a_run_on_two_sets_mixed_goes_on_with_the_same_weights_alone(
    tiny_shards: Path, bare_tiny_shards: Path, tmp_path: Path
) -> None:
    def mixed(weight: float) -> PretrainConfig:
        parts = [{"shards": str(tiny_shards), "weight": weight}, str(bare_tiny_shards)]
        return resolve(PretrainConfig, {**TINY, "out": str(tmp_path / "run"), "shards": parts})

    pretrain(mixed(3))
    assert len(read_metrics(tmp_path / "run")) == 20
    with pytest.raises(ConfigError, match="begun with other settings"):
        pretrain(mixed(2))


def test_tars_of_others_are_trained_on_as_they_are(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "cache"))
    tars = tmp_path / "tars"
    tars.mkdir()
    for tar in (tiny_shards / "train").glob("*.tar"):
        shutil.copy(tar, tars)
    run = settings(tars, tmp_path / "run", task={"kind": "classification"}, stream={"workers": 0})
    pretrain(run)
    pretrain(settings(tiny_shards, tmp_path / "other", task={"kind": "classification"}))
    assert outcome(tmp_path / "run")[0] == outcome(tmp_path / "other")[0]


def test_a_damaged_sample_is_replaced_and_counted(tiny_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_shards, tmp_path / "set")
    tar = tmp_path / "set/train/train-000002.tar"
    tar.chmod(0o644)
    raw = tar.read_bytes()
    tar.write_bytes(raw.replace(b"IDAT", b"IDOT", 1))
    with pytest.raises(DataError, match="png member is damaged"):
        pretrain(settings(tmp_path / "set", tmp_path / "strict"))
    pretrain(settings(tmp_path / "set", tmp_path / "lenient", stream={"workers": 0, "max_bad_fraction": 0.05}))
    timing = [json.loads(line) for line in (tmp_path / "lenient" / "timing.jsonl").read_text().splitlines()]
    assert sum(entry["skipped"] for entry in timing) > 1  # it comes again in every epoch


def test_supervised_pretraining_is_the_same_command(tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", task={"kind": "classification"}))
    metrics = read_metrics(tmp_path / "run")
    assert metrics[0]["loss"] == pytest.approx(1.0986, abs=1e-3)  # ln 3
    assert metrics[-1]["accuracy"] > 0.5


def test_supervised_pretraining_takes_augmentations(tiny_shards: Path, tmp_path: Path) -> None:
    task = {"kind": "classification", "mixing": {"mixup": 0.2}}
    pretrain(settings(tiny_shards, tmp_path / "run", task=task, view={"augment": {"num_ops": 2, "magnitude": 10}}))
    losses = [values["loss"] for values in read_metrics(tmp_path / "run")]
    assert losses[0] == pytest.approx(1.0986, abs=1e-3)  # ln 3
    assert len(set(losses)) > 1


def test_a_resume_on_other_shards_or_settings_is_refused(undisturbed: Path, tiny_shards: Path) -> None:
    with pytest.raises(ConfigError, match="global_batch: was 16, now 8"):
        pretrain(settings(tiny_shards, undisturbed, global_batch=8))


def test_classification_without_labels_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    from mpp.shards.options import ShardOptions
    from mpp.shards.sharding import shard_corpus

    images = tiny_shards.parent / "images"
    shard_corpus(ShardOptions(source=str(images), out=str(tmp_path / "bare"), labels="none", workers=0))
    with pytest.raises(DataError, match="no labels"):
        pretrain(settings(tmp_path / "bare", tmp_path / "run", task={"kind": "classification"}))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="step"):
        pretrain(settings(tiny_shards, tmp_path / "run", optimizer={"learning_rate": 1e30}, clip=None))
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert int(checkpoint.name[5:]) < 5
