"""Every file in configs/ is one that its stage, or accelerate, accepts."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from mpp.config import merge, resolve
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.masking import BlockMask
from mpp.plain_yaml import read_yaml
from mpp.training.recipe import PretrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LAUNCHERS = sorted((CONFIGS / "accelerate").iterdir())
STAGES = sorted(file for file in CONFIGS.rglob("*") if file.is_file() and file not in LAUNCHERS)

# folder: where its class is, and the settings that a person gives on the command line
CLASSES = {
    "corpus": ("mpp.shards.layout:ShardOptions", {"source": "images", "out": "shards"}),
    "pretrain": ("mpp.training.pretraining:PretrainConfig", {"shards": "shards", "out": "run"}),
    "transfer": ("mpp.evaluation.finetune:TransferConfig", {"backbone": "run", "shards": "shards", "out": "results"}),
    "probe": ("mpp.evaluation.probing:ProbeConfig", {"backbone": "run", "shards": "shards", "out": "results"}),
    "compare": ("mpp.evaluation.plan:CompareConfig", {"shards": "shards", "out": "comparison"}),
}


def _name(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


@pytest.mark.parametrize("file", STAGES, ids=_name)
def test_the_stage_accepts_its_config(file: Path) -> None:
    path, given = CLASSES[file.relative_to(CONFIGS).parts[0]]
    module, _, cls = path.partition(":")
    resolve(getattr(import_module(module), cls), merge(read_yaml(file), given), where=_name(file))


@pytest.mark.parametrize("file", LAUNCHERS, ids=_name)
def test_accelerate_accepts_its_config_which_holds_no_hyper_parameter(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "no"
    assert set(config.deepspeed_config) <= {"zero_stage", "offload_optimizer_device", "deepspeed_multinode_launcher"}
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize("file", [*STAGES, *LAUNCHERS], ids=_name)
def test_a_config_says_first_what_it_is(file: Path) -> None:
    assert file.suffix == ".yaml" and file.read_text().startswith("# ")


def test_an_ablation_changes_nothing_but_what_it_names() -> None:
    base = read_yaml(CONFIGS / "pretrain/vit_b16_imagenet.yaml")
    given = {"shards": "shards", "out": "run"}
    plain, blocks, hybrid = (
        resolve(PretrainConfig, merge(merge(base, read_yaml(file)), given))
        for file in (
            CONFIGS / "pretrain/vit_b16_imagenet.yaml",
            CONFIGS / "pretrain/block_mask.yaml",
            CONFIGS / "pretrain/hybrid.yaml",
        )
    )
    assert replace(blocks, task=plain.task) == plain
    assert blocks.task == replace(plain.task, mask=BlockMask(ratio=0.5, masked=0.8, other=0.1))
    assert replace(hybrid, vit=plain.vit) == plain
    assert replace(hybrid.vit, name=plain.vit.name) == plain.vit


def test_every_network_of_a_config_can_be_built() -> None:
    for file in (CONFIGS / "pretrain").iterdir():
        with torch.device("meta"):
            settings = resolve(VitConfig, read_yaml(file).get("vit", {}))
            encoder = build_encoder(settings)
        assert encoder.width > 0, file
