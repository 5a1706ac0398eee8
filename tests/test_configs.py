"""Every file in configs/ is one that its stage, or accelerate, accepts."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from mpp.config import merge, resolve
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.masking import BlockMask
from mpp.plain_yaml import read_yaml
from mpp.training.optim import Schedule, Sgd
from mpp.training.recipe import PretrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LAUNCHERS = sorted((CONFIGS / "accelerate").iterdir())
STAGES = sorted(file for file in CONFIGS.rglob("*") if file.is_file() and file not in LAUNCHERS)

# folder: where its class is, and the settings that a person gives on the command line
CLASSES = {
    "corpus": ("mpp.shards.layout:ShardOptions", {"source": "images", "out": "shards"}),
    "pretrain": ("mpp.training.pretraining:PretrainConfig", {"shards": "shards", "out": "run"}),
    "transfer": ("mpp.evaluation.recipe:TransferConfig", {"backbone": "run", "shards": "shards", "out": "results"}),
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


SMALL_GRID, IMAGENET_GRID = (0.001, 0.003, 0.01, 0.03), (0.003, 0.01, 0.03, 0.06)

# the paper's fine-tuning (ViT, B.1.1 and Tab. 4): classes, steps, rates, share of train that is held out
PROTOCOLS = {
    "imagenet": (1000, 20_000, IMAGENET_GRID, 0.01),
    "cifar10": (10, 10_000, SMALL_GRID, 0.02),
    "cifar100": (100, 10_000, SMALL_GRID, 0.02),
    "oxford_pets": (37, 500, SMALL_GRID, 0.1),
    "oxford_flowers102": (102, 500, SMALL_GRID, 0.1),
}

# VTAB-1k (arXiv:1910.04867): classes of each task; what the paper's ViT-L/16 of ImageNet-21k and ViT-H/14 of JFT reach
VTAB = {
    "caltech101": (102, 90.8, 95.3),
    "cifar100": (100, 84.1, 85.5),
    "dtd": (47, 74.1, 75.2),
    "flowers102": (102, 99.3, 99.7),
    "pets": (37, 92.7, 97.2),
    "sun397": (397, 61.0, 65.0),
    "svhn": (10, 80.9, 88.9),
    "camelyon": (2, 82.5, 83.3),
    "eurosat": (10, 95.6, 96.7),
    "resisc45": (45, 85.2, 91.4),
    "retinopathy": (5, 75.3, 76.6),
    "clevr_count": (8, 70.3, 91.7),
    "clevr_distance": (6, 56.1, 63.8),
    "dmlab": (6, 41.9, 53.1),
    "kitti_distance": (4, 79.9, 84.5),
    "dsprites_location": (16, 74.7, 79.4),
    "dsprites_orientation": (16, 64.9, 63.3),
    "smallnorb_azimuth": (18, 30.5, 33.2),
    "smallnorb_elevation": (9, 41.7, 51.2),
}


def _protocol(file: Path) -> TransferConfig:
    return resolve(TransferConfig, merge(read_yaml(file), {"backbone": "run", "shards": "set", "out": "results"}))


def test_every_protocol_fine_tunes_as_the_paper_does() -> None:
    files = {name: CONFIGS / f"transfer/{name}.yaml" for name in PROTOCOLS}
    vtab = {f"vtab/{file.stem}": file for file in (CONFIGS / "transfer/vtab").iterdir()}
    assert set(vtab) == {f"vtab/{name}" for name in VTAB} and len(vtab) == 19
    for name, file in (files | vtab).items():
        settings = _protocol(file)
        assert settings.data is not None, name
        task = VTAB.get(name.removeprefix("vtab/"), (0,))[0]
        classes, steps, rates, held_out = PROTOCOLS.get(name) or (task, 2_500, (0.01,), 0.1)
        assert (settings.data.classes, settings.steps, settings.learning_rates) == (classes, steps, rates), name
        assert settings.held_out == held_out, name
        assert settings.data.limit == (1_000 if name in vtab else None), name
        assert settings.optimizer == Sgd(momentum=0.9), name
        assert (settings.global_batch, settings.clip, settings.interpolation) == (512, 1.0, "bilinear"), name
        assert (settings.image_size, settings.metric) == ((384, 384), "top1"), name
        assert settings.schedule == Schedule(decay="cosine", warmup_steps=100 if steps == 500 else 500), name
        settings.schedule.check(settings.steps)


def test_every_protocol_says_its_command_and_what_to_expect() -> None:
    for name in (*PROTOCOLS, *(f"vtab/{task}" for task in VTAB)):
        file = CONFIGS / f"transfer/{name}.yaml"
        head = " ".join(line.strip("# ") for line in file.read_text().splitlines() if line.startswith("#"))
        assert f"--config configs/transfer/{name}.yaml" in head, name
        assert "To expect" in head and "data.source=" in head, name
        for number in VTAB.get(name.removeprefix("vtab/"), ())[1:] if name.startswith("vtab/") else ():
            assert f"{number} %" in head, name


def test_the_numbers_of_the_nineteen_tasks_have_the_means_that_the_paper_prints() -> None:
    columns = list(zip(*VTAB.values(), strict=True))
    assert round(sum(columns[1]) / 19, 1) == 72.7  # Tab. 2: 72.72 and 77.63
    assert round(sum(columns[2]) / 19, 1) == 77.6


def test_tasks_whose_labels_a_crop_or_a_mirror_would_change_have_neither() -> None:
    structured = list(VTAB)[-8:]
    for name in VTAB:
        view = _protocol(CONFIGS / f"transfer/vtab/{name}.yaml").view
        assert view.squash and view.crop_fraction == 1.0, name  # all that there is to count or to place is seen
        assert (view.crop == "none") == (name in structured), name
        assert view.flip == (name not in (*structured, "svhn")), name


def test_bins_of_dsprites_are_as_vtab_divides_them() -> None:
    for name, positions in (("location", 32), ("orientation", 40)):
        data = _protocol(CONFIGS / f"transfer/vtab/dsprites_{name}.yaml").data
        assert data is not None
        found = np.searchsorted(data.bins, np.arange(positions), side="right")
        assert found.tolist() == [int(number // (positions / 16)) for number in range(positions)]


def test_every_network_of_a_config_can_be_built() -> None:
    for file in (CONFIGS / "pretrain").iterdir():
        with torch.device("meta"):
            settings = resolve(VitConfig, read_yaml(file).get("vit", {}))
            encoder = build_encoder(settings)
        assert encoder.width > 0, file
