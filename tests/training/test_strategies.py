"""ZeRO 1, 2 and 3 on two processes train as one process does, go on where they were killed, and leave whole weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from mpp.config import merge, resolve
from mpp.errors import CheckpointError
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.pretraining import PretrainConfig, pretrain
from mpp.training.runs import read_metrics
from mpp.training.strategies import check_fits, make_whole, save_state, strategy_of

ROOT = Path(__file__).resolve().parent.parent.parent
TWO_UNDER_DEEPSPEED = ROOT / "configs" / "accelerate" / "cpu_2_processes_deepspeed.yaml"
# Wide enough for matrices above 100,000 weights: ZeRO 3 keeps smaller ones whole on every process.
TREE = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "image_size": [8, 8],
        "patch_size": 2,
        "width": 192,
        "depth": 1,
        "heads": 3,
    },
    "view": {"crop": "pad"},
    "steps": 6,
    "global_batch": 16,
    "stream": {"workers": 0},
    "log_every": 1,
    "save_every": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"optimizer": {"layer_decay": 0.5, "learning_rate": 0.003}, "micro_batch": 4},
    "adam": {"optimizer": {"kind": "adam"}, "clip": 0.1},
    "sgd": {"optimizer": {"kind": "sgd"}, "clip": None},
}
# Several runs in one launch: to start processes takes longer than the runs.
SCRIPT = """
import json, sys
from mpp.config import resolve
from mpp.training.devices import leave_together
from mpp.training.pretraining import PretrainConfig, pretrain
for tree in json.loads(sys.argv[1]):
    pretrain(resolve(PretrainConfig, tree))
leave_together()
"""


def launch(folder: Path, trees: list[dict[str, Any]], *options: str) -> "subprocess.Popen[str]":
    """Start two processes under DeepSpeed that make the given runs one after another."""
    script = folder / "runs.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_UNDER_DEEPSPEED)]
    return subprocess.Popen(
        [*launcher, "--main_process_port", "0", *options, str(script), json.dumps(trees)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def alone(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of ``VARIANTS`` on one process, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("alone")
    for name, changes in VARIANTS.items():
        pretrain(resolve(PretrainConfig, merge(trees_base(tiny_shards, folder / name), changes)))
    return folder


def trees_base(shards: Path, out: Path) -> dict[str, Any]:
    return {**TREE, "shards": str(shards), "out": str(out)}


def assert_alike(run: Path, other: Path) -> None:
    """Two runs are the same up to rounding: every figure of every step, and the weights."""
    for here, there in zip(read_metrics(run), read_metrics(other), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-6)
    weights, others = (load_file(folder / "backbone.safetensors") for folder in (run, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, others[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(1,), (2, "--offload_optimizer_device", "cpu"), (3,)], ids=["1", "2 offload", "3"])
def test_a_zero_run_is_that_of_one_process_also_when_killed(
    alone: Path, tiny_shards: Path, tmp_path: Path, options: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed", reason='needs pip install -e ".[deepspeed]"')
    trees = [merge(trees_base(tiny_shards, tmp_path / name), changes) for name, changes in VARIANTS.items()]
    arguments = ("--zero_stage", *map(str, options))
    finish(launch(tmp_path, trees, *arguments))
    for name in VARIANTS:
        assert_alike(tmp_path / name, alone / name)
    half = trees_base(tiny_shards, tmp_path / "half")
    finish(launch(tmp_path, [{**half, "precision": "bf16"}], *arguments))
    for here, there in zip(read_metrics(tmp_path / "half"), read_metrics(alone / "plain"), strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=0.02)
    weights = load_file(tmp_path / "half" / "backbone.safetensors")
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())  # those kept in fp32
    cut = trees_base(tiny_shards, tmp_path / "cut")
    monkeypatch.setenv("MPP_FAULT", "kill@step:5")
    launch(tmp_path, [cut], *arguments).communicate()
    monkeypatch.delenv("MPP_FAULT")
    with pytest.raises(CheckpointError, match=rf"ZeRO {options[0]} on 2 processes, this launch is DDP on 1 process"):
        pretrain(resolve(PretrainConfig, cut))
    finish(launch(tmp_path, [cut], *arguments))
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    files = [path.name for path in newest_checkpoint(tmp_path / "cut").rglob("*")]
    assert not [name for name in files if name.endswith(".py")]
    assert sum(name.endswith("optim_states.pt") for name in files) == 2
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 192, "depth": 1, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    model.load_state_dict(load_file(tmp_path / "cut" / "backbone.safetensors"))  # strict: the same names and shapes


def launched_as(stage: int | None, processes: int) -> Accelerator:
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=processes)  # type: ignore[return-value]


def test_copies_fit_any_launch_without_parts_and_parts_only_their_own() -> None:
    def fits(saved: dict[str, Any], stage: int | None, processes: int) -> bool:
        try:
            check_fits(launched_as(stage, processes), saved, Path("step-000000001"))
        except CheckpointError as error:
            assert "out=ANOTHER" in str(error)
            return False
        return True

    copies, two = {"strategy": "copies", "world": 2}, {"strategy": "zero2", "world": 2}
    assert fits(copies, None, 1) and fits(copies, None, 8)
    assert fits(two, 2, 2)
    assert not fits(copies, 1, 2)
    assert not fits(two, 2, 4)
    assert not fits(two, 3, 2)
    assert not fits(two, None, 2)
    assert strategy_of(launched_as(3, 1)) == "zero3"


def test_the_refusal_names_both_launches_and_the_way_back() -> None:
    with pytest.raises(CheckpointError, match=r"ZeRO 2 on 4 processes, this launch is DeepSpeed ZeRO 3 on 1 process;"):
        check_fits(launched_as(3, 1), {"strategy": "zero2", "world": 4}, Path("step"))
    with pytest.raises(CheckpointError, match=r"--zero_stage 2, --num_processes 4"):
        check_fits(launched_as(None, 4), {"strategy": "zero2", "world": 4}, Path("step"))


def test_without_parts_a_task_stays_as_it_is_and_a_state_is_written(tmp_path: Path) -> None:
    accelerator, task = Accelerator(cpu=True), nn.Linear(2, 2)
    weight = task.weight
    make_whole(accelerator, task)
    assert task.weight is weight
    save_state(accelerator, tmp_path)
    assert list(tmp_path.glob("random_states_*"))
