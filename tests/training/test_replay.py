"""A step taken again is that step, to the bit; and what in it is not finite is found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.tasks import StepOutput
from mpp.stream.batches import Batch
from mpp.training.pretraining import PretrainConfig, pretrain
from mpp.training.replay import bad_gradients, replay, sample_losses

FAULT = "nan@gradient:7,nan@loss:9"


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps whose 7th has no finite gradient and whose 9th no finite loss, saved every 4 steps."""
    out = tmp_path_factory.mktemp("replay") / "run"
    tree = {
        "shards": str(tiny_shards),
        "out": str(out),
        "vit": {**tiny_vit, "drop_path": 0.2},
        "steps": 10,
        "global_batch": 16,
        "micro_batch": 8,
        "stream": {"workers": 0},
        "log_every": 1,
        "save_every": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPP_FAULT", FAULT)
        pretrain(resolve(PretrainConfig, tree))
    return out


@pytest.mark.parametrize("name", ["checkpoints", "elsewhere"])
def test_a_replay_takes_the_very_same_step(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPP_FAULT", FAULT)
    before = sorted(path.name for path in run.rglob("*"))
    (run / "checkpoints").rename(run / name)  # without checkpoints it goes the whole way
    found = replay(run / "replay-000000007.json")
    (run / name).rename(run / "checkpoints")
    assert found.recorded.loss == found.now.loss > 0
    assert not found.recorded.finite and not found.now.finite
    assert found.parameters == ["mask_token"]
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_replay_without_the_fault_has_the_loss_of_the_step_and_nothing_to_blame(run: Path) -> None:
    found = replay(run / "replay-000000007.json")
    assert found.recorded.loss == found.now.loss
    assert found.now.finite and found.parameters == []
    assert len(found.samples) == 16
    assert all("train-0000" in name and "key" in name for name, _ in found.samples)
    losses = [loss for _, loss in found.samples]
    assert losses == sorted(losses, reverse=True)
    ids = json.loads((run / "replay-000000007.json").read_text())["ids"]
    assert len(ids) == 1 and len(set(ids[0])) == 16


def test_a_loss_that_is_no_number_makes_every_gradient_one_that_is_none(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPP_FAULT", FAULT)
    found = replay(run / "replay-000000009.json")
    assert str(found.now.loss) == str(found.recorded.loss) == "nan"
    assert len(found.parameters) > 20


class Root(nn.Module):
    """A stub task whose loss is the root of the weighted brightness: no number for black images, of weight -1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: Batch) -> StepOutput:
        return StepOutput((batch.images.float().mean((1, 2, 3)) * self.weight - 1).sqrt().mean() + self.other, {})


def test_the_sample_and_the_parameter_that_are_to_blame_are_found() -> None:
    images = torch.tensor([5, 0, 10]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    batch, task = Batch(images, None, torch.tensor([7, 8, 9]), torch.zeros(3)), Root()
    losses = dict(sample_losses(task, [batch], Accelerator(cpu=True)))
    assert losses[7] == 3.0 and losses[9] == 4.0 and str(losses[8]) == "nan"
    task.train()
    task(batch).loss.backward()
    assert bad_gradients(task) == ["weight"]


def test_what_is_no_replay_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "replay.json"
    for text in ("{}", "[1]", "{", ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is no replay file"):
            replay(file)
    with pytest.raises(ConfigError, match="No such file"):
        replay(tmp_path / "none.json")
