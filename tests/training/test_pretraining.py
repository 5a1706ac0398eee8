"""Pretraining runs: killed and continued they are the same run, to the bit; and on two processes as on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class
from safetensors.torch import load_file

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError, NumericsError, Stopped
from mpp.model.encoders import build_encoder
from mpp.training.backbone import load_backbone
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.ema import BACKBONE_EMA
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
    averages = [
        load_backbone(str(out / BACKBONE_EMA)).weights for out in (first, second) if (out / BACKBONE_EMA).exists()
    ]
    assert len(averages) != 1
    for name in weights if averages else ():
        assert torch.equal(averages[0][name], averages[1][name]), name


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
def test_two_processes_killed_and_continued_are_the_same_run(tiny_shards: Path, tmp_path: Path) -> None:
    launch = launcher("cpu_2_processes.yaml")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    averaged = "ema=0.9"
    subprocess.run([sys.executable, *launch, *command(tiny_shards, whole, averaged)], check=True, cwd=ROOT)
    assert kill_at(start([*launch, *command(tiny_shards, cut, averaged)]), cut, 8) == -signal.SIGKILL
    subprocess.run([sys.executable, *launch, *command(tiny_shards, cut, averaged)], check=True, cwd=ROOT)
    assert (whole / BACKBONE_EMA).exists()
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_two_processes_do_not_wait_for_pooling_that_has_no_loss(tiny_shards: Path, tmp_path: Path) -> None:
    changes = ("vit.pool=map", "task.mask.kind=block", "steps=3", "save_every=3", "micro_batch=4")
    subprocess.run(
        [sys.executable, *launcher("cpu_2_processes.yaml"), *command(tiny_shards, tmp_path / "run", *changes)],
        check=True,
        cwd=ROOT,
    )
    assert len(read_metrics(tmp_path / "run")) == 3


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
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-6)


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


def test_every_timing_line_says_how_much_of_the_matrix_rate_was_used(undisturbed: Path) -> None:
    measured = json.loads((undisturbed / "environment.json").read_text())
    most = 1e3 * measured["matrix_tflops"] / measured["gflops_per_image"]
    lines = [json.loads(line) for line in (undisturbed / "timing.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        assert line["utilisation"] == pytest.approx(line["images_per_second"] / most, abs=1e-5)
        assert 0 < line["utilisation"] < 1


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


def test_every_family_of_networks_goes_through_the_same_command(tiny_shards: Path, tmp_path: Path) -> None:
    blocks = {"mask": {"kind": "block"}}
    families: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "vit_tiny_r_s16_p8_224", "image_size": [64, 64], "patch_size": None}, blocks),
        ({"parallel": True, "qk_norm": True, "bias": False, "pool": "map"}, blocks),
        ({"patch_size": 1, "image_size": [4, 6]}, blocks),
        ({"parallel": True, "pool": "map"}, {"kind": "classification"}),
    ]
    for number, (vit, task) in enumerate(families):
        run = settings(tiny_shards, tmp_path / str(number), vit=vit, task=task, steps=2)
        pretrain(run)
        backbone = load_backbone(run.out)
        assert backbone.vit == run.vit
        torch.manual_seed(run.seed)
        before = build_encoder(run.vit).timm.state_dict()
        assert before.keys() == backbone.weights.keys()
        same = {name for name, value in before.items() if torch.equal(value, backbone.weights[name])}
        waits = run.vit.pool == "map" and run.task.kind == "masked_patches"
        assert same == {name for name in before if waits and name.startswith("attn_pool")}


def test_a_resnet_is_refused_for_masked_patches_before_there_is_a_run(tiny_shards: Path, tmp_path: Path) -> None:
    vit = {"name": "resnetv2_50x1_bit", "pool": "mean", **dict.fromkeys(("patch_size", "width", "depth", "heads"))}
    with pytest.raises(ConfigError, match="has no patch tokens to corrupt"):
        pretrain(settings(tiny_shards, tmp_path / "run", vit=vit))
    assert not (tmp_path / "run").exists()


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


@contextmanager
def stop_signal_after(out: Path, lines: int) -> Iterator[None]:
    """Send this process SIGTERM once the run has logged so many lines."""

    def send() -> None:
        path, deadline = out / "metrics.jsonl", time.monotonic() + 60
        while time.monotonic() < deadline and not ended.is_set():
            if path.exists() and path.read_text().count("\n") >= lines:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.002)

    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # one that comes too late kills no test
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGTERM, before)


def test_a_run_with_an_average_goes_on_bit_for_bit(tiny_shards: Path, tmp_path: Path) -> None:
    plain, whole, cut = tmp_path / "plain", tmp_path / "whole", tmp_path / "cut"
    pretrain(settings(tiny_shards, plain, steps=100))
    changes = {"ema": 0.8, "ema_warmup": True, "steps": 100}
    pretrain(settings(tiny_shards, whole, **changes))
    with stop_signal_after(cut, 6), pytest.raises(Stopped):
        pretrain(settings(tiny_shards, cut, **changes))
    pretrain(settings(tiny_shards, cut, **changes))
    assert_same_run(whole, cut)
    assert outcome(plain)[0] == outcome(whole)[0]  # the average changes nothing in the training
    trained, averaged = load_backbone(str(whole)), load_backbone(str(whole / BACKBONE_EMA))
    assert not torch.equal(trained.weights["norm.weight"], averaged.weights["norm.weight"])
    assert "averaged with decay 0.8" in averaged.origin and "averaged" not in trained.origin


def test_the_rate_of_a_batch_is_derived_printed_and_noted(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"learning_rate_scaling": "sqrt", "schedule": {"decay": "constant"}, "steps": 2}
    pretrain(settings(tiny_shards, tmp_path / "run", **changes))
    assert "derived: learning_rate 0.00075, epochs 0.533, processes 1" in capsys.readouterr().out
    derived = json.loads((tmp_path / "run" / "derived.json").read_text())
    assert derived == {
        "learning_rate": pytest.approx(0.00075),
        "processes": 1, "micro_batch": 16, "accumulate": 1, "epochs": pytest.approx(32 / 60, abs=1e-3),
    }  # fmt: skip
    assert [entry["learning_rate"] for entry in read_metrics(tmp_path / "run")] == pytest.approx([0.00075] * 2)
    assert "0.00075" not in (tmp_path / "run" / "config.yaml").read_text()


@pytest.fixture
def broken_tracker() -> Iterator[str]:
    """Register a tracker that takes pictures and fails at the third step."""

    class Broken(GeneralTracker):
        name = "broken"
        requires_logging_directory = True
        steps: ClassVar[list[int]] = []

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()

        @property
        def tracker(self) -> None:
            return None

        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            assert step is not None
            self.steps.append(step)
            if step == 3:
                raise ConnectionError("down")

        def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            assert values["reconstructions"][0].shape == (24, 64, 3)

    register_tracker_class(Broken)
    yield "broken"
    del LOGGER_TYPE_TO_CLASS["broken"]
    assert Broken.steps == [1, 2, 3]


def test_a_run_whose_tracker_is_down_is_the_same_run(
    undisturbed: Path, tiny_shards: Path, tmp_path: Path, broken_tracker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", tracker=broken_tracker, picture_every=1))
    assert_same_run(undisturbed, tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("tracker broken failed: ConnectionError: down") == 1
    assert "missed 36 of 40 entries" in shown


def test_a_tracker_that_is_not_there_is_refused_before_the_run(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)knows no 'wanb'.*tracker=wandb"):
        pretrain(settings(tiny_shards, tmp_path / "run", tracker=["wanb"]))
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_a_stopped_and_continued_run_as_one(tiny_shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    changes = {"tracker": ["tensorboard"], "picture_every": 50, "steps": 100, "log_every": 5}
    with stop_signal_after(out, 6), pytest.raises(Stopped):
        pretrain(settings(tiny_shards, out, **changes))
    pretrain(settings(tiny_shards, out, **changes))
    events = EventAccumulator(str(out / "trackers" / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert len(events.Scalars("loss")) == 20
    assert shown == {entry["step"]: pytest.approx(entry["loss"]) for entry in read_metrics(out)}
    assert {"images_per_second", "accuracy", "learning_rate"} <= set(events.Tags()["scalars"])
    pictures = events.Images("reconstructions")
    assert {(picture.width, picture.height) for picture in pictures} == {(8 * 8, 3 * 8)}
    assert [picture.step for picture in pictures][-1] == 100
    parameters = list((out / "trackers" / "tensorboard").glob("*/hparams.yml"))
    assert len(parameters) == 1 and "vit.width: 16" in parameters[0].read_text()


def test_a_finished_run_goes_on_with_a_cool_down_as_if_it_had_been_planned(tiny_shards: Path, tmp_path: Path) -> None:
    planned, short = tmp_path / "planned", tmp_path / "short"
    schedule = {"decay": "rsqrt", "warmup_steps": 3, "timescale": 5}
    longer = {"steps": 18, "schedule": {**schedule, "cooldown_steps": 8}}
    pretrain(settings(tiny_shards, planned, **longer))
    pretrain(settings(tiny_shards, short, steps=10, schedule=schedule))
    with pytest.raises(ConfigError, match="begun with other settings"):
        pretrain(settings(tiny_shards, short, **longer))
    pretrain(settings(tiny_shards, short, allow_changed=["steps", "schedule.cooldown_steps"], **longer))
    assert_same_run(planned, short)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_checkpoint_that_is(tiny_shards: Path, tmp_path: Path) -> None:
    run = settings(tiny_shards, tmp_path / "run", optimizer={"learning_rate": 1e30}, clip=None)
    with pytest.raises(NumericsError, match=r"(?s)step 4.*mpp replay .*replay-000000004.json"):
        pretrain(run)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest.name == "step-000000004"
    assert all(bool(torch.isfinite(value).all()) for value in load_file(newest / "model.safetensors").values())
    assert len(list((tmp_path / "run").glob("replay-*.json"))) == 3
    assert "failed" in (tmp_path / "run" / "STATUS").read_text()
