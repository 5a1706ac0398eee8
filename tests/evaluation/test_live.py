"""Probes of a network that is still being trained: the run stays the same run, also killed, stopped and continued."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_runs import ROOT, ForkedRuns, wait_until

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError, MemoryLimitError, Stopped
from mpp.evaluation import live
from mpp.evaluation.labels import labelled_shards, read_labels
from mpp.evaluation.live import draw_train, open_live_probe
from mpp.evaluation.probing import ProbeConfig, probe
from mpp.model.vit import Vit, VitConfig
from mpp.stream.loader import evaluation_batches
from mpp.training.checkpoint import complete_checkpoints
from mpp.training.devices import open_accelerator
from mpp.training.pretraining import pretrain
from mpp.training.probe_schedule import ProbeSchedule
from mpp.training.recipe import PretrainConfig
from mpp.training.runs import read_metrics

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def hard_shards(shards_of_hues: Callable[..., Path]) -> Path:
    """Shards of 8 x 8 images whose class, of 3, is hard to see: accuracies are neither 0 nor 100. Read only."""
    return shards_of_hues("hard", seed=1, noise=200, hue=12, test_images=45)


@pytest.fixture(scope="module")
def tree(hard_shards: Path, tiny_vit: Tree) -> Tree:
    """A run of 12 steps with probes before, between and after them, and with checkpoints between probes."""
    return {
        "shards": str(hard_shards),
        "vit": {**tiny_vit, "drop_path": 0.1},
        "steps": 12,
        "global_batch": 16,
        "optimizer": {"learning_rate": 0.01},
        "ema": 0.8,
        "log_every": 1,
        "save_every": 5,
        "stream": {"workers": 0},
        "probe": {"every": 4, "shots": [1, 5], "neighbours": 5},
    }


def run(tree: Tree, out: Path, **changes: Any) -> Path:
    pretrain(resolve(PretrainConfig, merge({**tree, "out": str(out)}, changes)), open_live_probe)
    return out


@pytest.fixture(scope="module")
def undisturbed(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``tree`` from start to end."""
    return run(tree, tmp_path_factory.mktemp("undisturbed") / "run")


def probed(folder: Path) -> dict[int, Tree]:
    """Return what was measured by step, in the order of the lines."""
    lines = [line for line in read_metrics(folder) if any(name.startswith("probe") for name in line)]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: {name: value for name, value in line.items() if "probe" in name} for line in lines}


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "backbone.safetensors", "backbone-ema.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_probes_change_nothing_in_the_training(tree: Tree, undisturbed: Path, tmp_path: Path) -> None:
    without = run(tree, tmp_path / "without", probe={"every": None})
    assert probed(without) == {} and list(probed(undisturbed)) == [0, 4, 8, 12]
    trained = [line for line in read_metrics(undisturbed) if "loss" in line]
    assert trained == read_metrics(without)
    for name in ("backbone.safetensors", "backbone-ema.safetensors"):
        assert (undisturbed / name).read_bytes() == (without / name).read_bytes()


def test_the_last_probe_finds_what_mpp_probe_finds_of_the_backbones(
    tree: Tree, undisturbed: Path, tmp_path: Path
) -> None:
    last = probed(undisturbed)[12]
    assert len(last) == 16 and len(set(last.values())) > 4
    for prefix, file in (("probe/", "backbone.safetensors"), ("probe_ema/", "backbone-ema.safetensors")):
        asked = {"backbone": str(undisturbed / file), "shards": tree["shards"], "out": str(tmp_path)}
        given = {"probes": ["fewshot", "knn"], "shots": [1, 5], "neighbours": 5, "stream": {"workers": 0}}
        for found in probe(resolve(ProbeConfig, {**asked, **given})):
            assert last[f"{prefix}{found.probe}/{found.feature}"] == found.top1


def test_what_probes_cost_is_in_the_timing_and_not_in_the_metrics(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "timing.jsonl").read_text().splitlines()]
    costs = [line for line in lines if "probe_seconds" in line]
    assert [line["step"] for line in costs] == [0, 4, 8, 12]
    assert all(line["probe_seconds"] > 0 for line in costs)
    assert "probe_share" not in costs[0] and all(0 < line["probe_share"] < 1 for line in costs[1:])
    assert "seconds" not in (undisturbed / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("step", "newest"), [(0, 0), (4, 4), (12, 12)])
def test_a_signal_in_a_probe_saves_and_the_probe_is_made_once_by_who_continues(
    tree: Tree, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, newest: int
) -> None:
    cut = tmp_path / "cut"
    with monkeypatch.context() as fault, pytest.raises(Stopped, match="saved at" if step else "nothing to save"):
        fault.setenv("MPP_FAULT", f"term@probe:{step}")
        run(tree, cut)
    assert step not in probed(cut)
    assert [int(path.name[5:]) for path in complete_checkpoints(cut / "checkpoints")][:1] == [newest] * bool(newest)
    run(tree, cut)
    assert_same_run(undisturbed, cut)


def test_a_probe_that_was_recorded_before_a_stop_is_not_made_again(
    tree: Tree, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut"
    with monkeypatch.context() as fault, pytest.raises(Stopped, match="saved at step 4"):
        fault.setenv("MPP_FAULT", "term@step:4")
        run(tree, cut, probe={"every": 2})
    assert list(probed(cut)) == [0, 2]
    with monkeypatch.context() as fault, pytest.raises(Stopped, match="saved at step 6"):
        fault.setenv("MPP_FAULT", "term@step:6")
        run(tree, cut, probe={"every": 2})
    assert list(probed(cut)) == [0, 2, 4]
    run(tree, cut)  # with others than it was begun with: they decide nothing
    assert list(probed(cut)) == [0, 2, 4, 8, 12]


def test_a_probe_at_the_step_of_the_newest_checkpoint_is_not_made_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = run(tree, tmp_path / "whole", probe={"every": 5}), tmp_path / "cut"
    with monkeypatch.context() as fault, pytest.raises(MemoryLimitError, match="step-000000005"):
        fault.setenv("MPP_FAULT", "raise-oom@step:7")
        run(tree, cut, probe={"every": 5})
    assert list(probed(cut)) == [0, 5]
    run(tree, cut, probe={"every": 5})
    assert_same_run(whole, cut)


def test_a_probe_sees_so_many_evaluation_views_as_the_run_has_them(tree: Tree, tmp_path: Path) -> None:
    view = {"crop_fraction": 0.6, "squash": True}
    views = {"vit": {"image_size": [4, 2]}, "view": view, "probe": {"images": 30}}
    settings = resolve(PretrainConfig, merge({**tree, "out": str(tmp_path)}, views))
    vit, seen = Vit(settings.vit).eval(), list[torch.Tensor]()
    vit.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    measure = open_live_probe(settings, open_accelerator("fp32"))
    measure(vit, lambda: None)
    expected = []
    for split in ("train", "test"):
        shards = labelled_shards(tree["shards"], split)
        batches = evaluation_batches(shards, settings.view, (4, 2), batch=shards.samples)
        expected += [image for batch in batches for image in batch.images]
    known = {image.numpy().tobytes() for image in expected}
    images = {image.numpy().tobytes() for image in torch.cat(seen)}
    assert len(torch.cat(seen)) - 60 in range(16) and len(images - known) <= 1  # but for black ones that fill a batch
    seen.clear()
    measure(vit, lambda: None)
    assert images == {image.numpy().tobytes() for image in torch.cat(seen)}


def test_the_images_are_few_and_equally_many_of_each_class(hard_shards: Path) -> None:
    train = labelled_shards(str(hard_shards), "train")
    labels = read_labels(train)
    for images, each in ((30, 10), (32, 10), (60, 20), (2000, 20)):
        ids = draw_train(train, ProbeSchedule(images=images, shots=(5,)))
        assert np.bincount(labels[ids]).tolist() == [each] * 3
        assert (np.diff(ids) > 0).all()
    few, more = (set(draw_train(train, ProbeSchedule(images=n, shots=(5,))).tolist()) for n in (30, 45))
    assert few < more


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"images": 29, "shots": [10]}, DataError, r"(?s)images=29 are 9 of each of 3 classes.*fix: probe.images=30"),
        (
            {"probes": ["knn"], "images": 2},
            DataError,
            r"(?s)images=2 are 0 of each of 3 classes, 1 are.*fix: probe.images=3",
        ),
        ({"shots": [5, 25]}, DataError, r"(?s)has 20 labelled images, 25 shots.*fix: probe.shots=\[5\]"),
        ({"probes": ["knn"], "neighbours": 61}, DataError, "fix: probe.neighbours=60"),
        ({"probes": ["knn"], "neighbours": 40, "images": 30}, DataError, "fix: probe.neighbours=30"),
        ({"test_split": "val"}, DataError, "probes: .*no split 'val'"),
        ({"test_split": "train"}, ConfigError, "tested on what it was fitted to"),
        ({"shards": "missing"}, DataError, "probes: missing: no shards here"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_there_is_a_run(
    tree: Tree, tmp_path: Path, changes: Tree, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(tree, tmp_path / "run", probe=changes)
    assert not (tmp_path / "run").exists()


def test_a_run_without_labels_is_probed_on_a_set_that_has_them(
    tree: Tree, bare_tiny_shards: Path, tmp_path: Path
) -> None:
    bare = {**tree, "shards": str(bare_tiny_shards), "steps": 1, "ema": None}
    with pytest.raises(DataError, match=r"probes: .*the split train carries no labels"):
        run(bare, tmp_path / "run")
    mixed = {**bare, "shards": [str(bare_tiny_shards), tree["shards"]]}
    with pytest.raises(ConfigError, match=r"probe\.shards: the run is trained on a mixture"):
        run(mixed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert list(probed(run(mixed, tmp_path / "run", probe={"shards": tree["shards"]}))) == [0, 1]


def test_weights_that_are_divided_over_processes_are_refused(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "divides_weights", lambda accelerator: True)
    with pytest.raises(ConfigError, match=r"(?s)probes need whole weights.*probe.every=null"):
        run(tree, tmp_path / "run")


def test_weights_kept_in_bf16_compute_in_fp32_and_stay_in_bf16(tree: Tree, tmp_path: Path) -> None:
    settings = resolve(PretrainConfig, {**tree, "out": str(tmp_path)})
    torch.manual_seed(0)
    vit = Vit(resolve(VitConfig, tree["vit"])).to(torch.bfloat16).eval()
    measure = open_live_probe(settings, open_accelerator("fp32"))
    found = measure(vit, lambda: None)
    assert {weight.dtype for weight in vit.parameters()} == {torch.bfloat16}
    assert found == measure(vit.float(), lambda: None)  # the same weights, kept in fp32


def test_numbers_that_are_no_fractions_stay_what_they_are() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
            self.register_buffer("places", torch.tensor([1, 0]))

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"some": images[:, self.places] * self.weight}

    found = live._InFp32(Counting())(torch.tensor([[2.0, 3.0]]))["some"]
    assert found.tolist() == [[3.0, 2.0]] and found.dtype == torch.float32


# Whole runs as processes


@pytest.fixture(scope="module")
def config(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(tree))
    return file


@pytest.fixture(scope="module")
def runs() -> Iterator[ForkedRuns]:
    """The process that runs are forked from."""
    with ForkedRuns() as runs:
        yield runs


@pytest.mark.slow
def test_two_processes_probe_together_and_a_signal_to_one_in_a_probe_stops_both(
    runs: ForkedRuns, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    def words(name: str) -> list[str]:
        return ["--config", str(config), f"out={tmp_path / name}"]

    assert runs.run(words("whole"), tmp_path / "log", ranks=2).codes == [0, 0]
    assert probed(tmp_path / "whole")[0] == probed(undisturbed)[0]
    for rank, step in ((0, 4), (1, 8)):
        cut = runs.start(words("cut"), tmp_path / "log", ranks=2, faults={rank: f"term@probe:{step}"})
        assert runs.codes(cut) == [143, 143], cut.output(0) + cut.output(1)
        assert all(f"saved at step {step}" in cut.output(number) for number in (0, 1))
        assert step not in probed(tmp_path / "cut")
    assert runs.run(words("cut"), tmp_path / "log", ranks=2).codes == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_where_one_process_is_lost_in_a_probe_the_other_ends_with_6(
    runs: ForkedRuns, config: Path, tmp_path: Path
) -> None:
    words = ["--config", str(config), f"out={tmp_path / 'run'}"]
    lost = runs.start(words, tmp_path / "log", ranks=2, faults={1: "kill@probe:8"})
    assert runs.codes(lost) == [6, -signal.SIGKILL]
    assert "is lost" in lost.output(0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_and_continued_have_every_probe_once(
    config: Path, tmp_path: Path, processes: int
) -> None:
    words = ["--kills", "3", "--seed", "5", "--processes", str(processes), "--", "--config", str(config)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_resume.py"), str(tmp_path), *words, "probe.every=2"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with 3 kills are bit-identical" in done.stdout
    assert list(probed(tmp_path / "undisturbed")) == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.slow
def test_a_signal_from_outside_in_the_middle_of_a_probe_is_answered(
    runs: ForkedRuns, config: Path, tmp_path: Path
) -> None:
    words = ["--config", str(config), f"out={tmp_path / 'run'}", "steps=100000", "probe.every=1", "log_every=50"]
    going = runs.start(words, tmp_path / "log")
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(probed(tmp_path / "run")) >= 3)
    os.kill(going.pids[0], signal.SIGTERM)
    assert runs.codes(going) == [143]
    newest = complete_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert f"saved at step {int(newest.name[5:])}" in going.output(0)
