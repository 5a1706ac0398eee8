"""When a run is probed, that the network is as it was afterwards, and what is said of the cost."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.config import resolve
from mpp.errors import DataError
from mpp.model.encoders import Encoder
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.monitor import Check, Probe
from mpp.training.pretraining import pretrain
from mpp.training.recipe import PretrainConfig
from mpp.training.runs import read_metrics

Train = Callable[..., Path]


@pytest.fixture
def train(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> Train:
    """Return a function that trains into tmp_path/run, probed by what it is given."""

    def run(probe: Probe, *, steps: int = 10, **schedule: Any) -> Path:
        tree = {
            "shards": str(tiny_shards), "out": str(tmp_path / "run"), "vit": {**tiny_vit, "drop_path": 0.2},
            "steps": steps, "global_batch": 16, "stream": {"workers": 0}, "save_every": 5, "log_every": 3,
            "probe": schedule,
        }  # fmt: skip
        pretrain(resolve(PretrainConfig, tree), lambda settings, accelerator: probe)
        return tmp_path / "run"

    return run


def calls(counts: list[int]) -> Probe:
    """Return a probe that counts how often it was called."""

    def probe(network: Encoder, check: Check) -> dict[str, float]:
        counts.append(len(counts))
        return {"number": float(len(counts))}

    return probe


@pytest.mark.parametrize(
    ("every", "steps"), [(4, [0, 4, 8, 10]), (5, [0, 5, 10]), (100, [0, 10]), (1, list(range(11)))]
)
def test_a_run_is_probed_at_the_beginning_every_so_many_steps_and_at_the_end(
    train: Train, every: int, steps: list[int]
) -> None:
    lines = read_metrics(train(calls([]), every=every))
    found = [line for line in lines if "probe/number" in line]
    assert [line["step"] for line in found] == steps
    assert [line["images_seen"] for line in found] == [16 * step for step in steps]
    assert [line["probe/number"] for line in found] == list(range(1, len(steps) + 1))
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 10]


def test_a_run_that_asks_for_no_probes_calls_none(train: Train) -> None:
    counts: list[int] = []
    train(calls(counts))
    assert counts == []


def test_a_finished_run_is_not_probed_again(train: Train) -> None:
    counts: list[int] = []
    lines = (train(calls(counts), every=5) / "metrics.jsonl").read_text()
    assert (train(calls(counts), every=5) / "metrics.jsonl").read_text() == lines
    assert len(counts) == 3


def test_the_network_is_in_evaluation_mode_in_a_probe_and_as_it_was_after(train: Train) -> None:
    seen: list[Encoder] = []

    def probe(network: Encoder, check: Check) -> dict[str, float]:
        assert not any(module.training for module in network.modules())
        torch.rand(7), torch.manual_seed(123)  # what it draws is nobody else's
        seen.append(network)
        return {}

    folder = train(probe, every=2)
    assert len(seen) == 6 and len(set(map(id, seen))) == 1
    assert all(module.training for module in seen[0].modules())
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    shutil.rmtree(folder)
    assert losses == [line["loss"] for line in read_metrics(train(calls([])))]


def test_where_a_probe_fails_what_was_due_has_been_saved_before(train: Train, tmp_path: Path) -> None:
    networks: list[Encoder] = []

    def probe(network: Encoder, check: Check) -> dict[str, float]:
        networks.append(network)
        if len(networks) == 2:
            raise DataError("a test image is damaged")
        return {}

    with pytest.raises(DataError, match="a test image is damaged"):
        train(probe, every=5)
    assert newest_checkpoint(tmp_path / "run").name == "step-000000005"
    assert all(module.training for module in networks[0].modules())


def test_a_large_share_of_the_time_is_said_once_with_a_way_out(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(network: Encoder, check: Check) -> dict[str, float]:
        time.sleep(0.5)
        return {"few-shot 10/patch_mean": 51.25}

    folder = train(slow, every=2)
    said = capsys.readouterr().out
    assert said.count("warning: probes take ") == 1
    advised = int(said.partition("probe.every=")[2].split()[0])
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    costs = [line for line in lines if "probe_seconds" in line]
    assert all(line["probe_seconds"] >= 0.5 for line in costs)
    share = costs[1]["probe_share"]
    assert 0.05 < share < 1 and advised >= 2 * 19 * share / (1 - share) - 2
    assert said.count("few-shot 10/patch_mean 51.25  (") == 6


def test_steps_that_remain_at_the_end_are_no_measure_of_the_share(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(network: Encoder, check: Check) -> dict[str, float]:
        time.sleep(0.5)
        return {}

    train(slow, every=100, steps=3)
    assert "warning: probes take " not in capsys.readouterr().out


def test_training_rates_leave_the_time_of_probes_out(train: Train) -> None:
    def slow(network: Encoder, check: Check) -> dict[str, float]:
        time.sleep(2.0)
        return {}

    folder = train(slow, every=4, steps=8)
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    with_probe = next(line for line in lines if line["step"] == 6)  # three steps, and a probe of two seconds
    assert 3 * with_probe["seconds_per_step"] < 2.0
