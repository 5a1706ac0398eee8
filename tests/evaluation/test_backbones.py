"""A backbone carries its own settings; at another resolution its positions are interpolated, whatever they are."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.config import merge, resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation.backbones import load_vit, open_backbone
from mpp.evaluation.choosing import no_choice
from mpp.evaluation.finetune import Finetuning
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.vit import Vit, resize_positions
from mpp.training.backbone import Backbone, load_backbone, save_backbone


def recipe(backbone: str = "scratch", **changes: Any) -> TransferConfig:
    return resolve(TransferConfig, {"backbone": backbone, "shards": "", "out": "", **changes})


def settings(tree: dict[str, Any], **changes: Any) -> TransferConfig:
    return resolve(TransferConfig, merge(tree, changes))


def without_vit(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the transfer as for a backbone, which carries its own settings."""
    return {key: value for key, value in tree.items() if key != "vit"}


def first_loss(chosen: TransferConfig) -> float:
    return Finetuning(chosen).final(no_choice(0.01, chosen.steps)).first_loss


def trained(tiny_vit: dict[str, Any], **changes: Any) -> Backbone:
    torch.manual_seed(1)
    vit = build_encoder(resolve(VitConfig, {**tiny_vit, **changes}))
    return Backbone(vit.settings, vit.timm.state_dict(), "a test")


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
@pytest.mark.parametrize(
    ("size", "new"), [((32, 32), (48, 48)), ((32, 48), (24, 40)), ((32, 72), (48, 48)), ((32, 32), (16, 64))]
)
def test_another_resolution_interpolates_positions_and_keeps_whether_they_learn(
    tiny_vit: dict[str, Any], how: str, positions: str, size: tuple[int, int], new: tuple[int, int]
) -> None:
    backbone = trained(tiny_vit, image_size=size, patch_size=8, positions=positions)
    vit = load_vit(recipe(image_size=new, interpolation=how), backbone)
    assert isinstance(vit, Vit) and vit.settings.image_size == new
    grids = ((size[0] // 8, size[1] // 8), (new[0] // 8, new[1] // 8))
    expected = resize_positions(backbone.weights["pos_embed"], *grids, how)  # type: ignore[arg-type]
    assert not torch.equal(expected[:, 1:2], expected[:, 2:3])
    assert torch.equal(vit.timm.pos_embed, expected)
    assert vit.timm.pos_embed.requires_grad == (positions == "learned")
    for name, weight in vit.timm.state_dict().items():
        assert name == "pos_embed" or torch.equal(weight, backbone.weights[name]), name


def test_a_fine_tuning_has_its_own_stochastic_depth_or_the_backbones(tiny_vit: dict[str, Any]) -> None:
    backbone = trained(tiny_vit, drop_path=0.3)
    for given, used in ((None, 0.3), (0.0, 0.0), (0.2, 0.2)):
        vit = load_vit(recipe(drop_path=given), backbone)
        assert vit.settings.drop_path == used
        assert getattr(vit.timm.blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(used)


def test_settings_that_a_backbone_would_ignore_are_refused_and_its_own_may_be_repeated(
    tiny_vit: dict[str, Any],
) -> None:
    backbone = trained(tiny_vit)
    for given in ({}, tiny_vit, {**tiny_vit, "image_size": [12, 12], "drop_path": 0.2}):
        assert load_vit(recipe(vit=given, image_size=[12, 12], drop_path=0.2), backbone).width == 16
    for given, words in (
        ({"width": 32}, "vit.width is 32, its own 16"),
        (
            {**tiny_vit, "depth": 3, "image_size": [9, 9]},
            r"vit.image_size is \(9, 9\), its own \(8, 8\); vit.depth is 3",
        ),
    ):
        with pytest.raises(ConfigError, match=words) as refused:
            load_vit(recipe(vit=given), backbone)
        assert "fix: leave vit.* out" in str(refused.value)


def test_a_run_a_file_and_scratch_are_told_apart(tiny_vit: dict[str, Any], tiny_run: Path, tmp_path: Path) -> None:
    assert open_backbone("scratch", "token", None) is None
    found = open_backbone(str(tiny_run), "token", None)
    assert found is not None and found.origin == load_backbone(str(tiny_run)).origin
    with pytest.raises(CheckpointError, match="no backbone at nowhere"):
        open_backbone("nowhere", "token", None)
    save_backbone(tmp_path / "backbone.safetensors", build_encoder(resolve(VitConfig, tiny_vit)), "a test")
    foreign = Backbone(resolve(VitConfig, {**tiny_vit, "width": 32}), trained(tiny_vit).weights, "a test")
    with pytest.raises(CheckpointError, match="scratch does not hold the weights of its own settings"):
        load_vit(recipe(), foreign)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(12, 12), (8, 14)])
def test_another_resolution_changes_positions_alone(
    tree: dict[str, Any], tiny_run: Path, size: tuple[int, int], interpolation: str
) -> None:
    chosen = settings(tree, backbone=str(tiny_run), image_size=list(size), interpolation=interpolation)
    backbone = load_backbone(str(tiny_run))
    vit = load_vit(chosen, backbone)
    weights = vit.timm.state_dict()
    assert vit.grid == (size[0] // 2, size[1] // 2)
    assert weights["pos_embed"].shape == (1, 1 + vit.num_patches, 16)
    assert torch.equal(weights["pos_embed"][:, 0], backbone.weights["pos_embed"][:, 0])
    for name in weights.keys() - {"pos_embed"}:
        assert torch.equal(weights[name], backbone.weights[name]), name
    assert first_loss(chosen) == pytest.approx(math.log(3), abs=1e-6)


def test_at_the_same_resolution_every_weight_stays(tree: dict[str, Any], tiny_run: Path) -> None:
    backbone = load_backbone(str(tiny_run))
    weights = load_vit(settings(tree, backbone=str(tiny_run)), backbone).timm.state_dict()
    assert all(torch.equal(weights[name], backbone.weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("vit", "size", "grids"),
    [
        ({"name": "vit_tiny_r_s16_p8_224", "image_size": [32, 64], "patch_size": None}, (64, 96), ((1, 2), (2, 3))),
        ({"parallel": True, "qk_norm": True, "bias": False, "pool": "map"}, (12, 8), ((4, 4), (6, 4))),
    ],
)
def test_a_backbone_of_another_family_changes_its_resolution_by_its_positions_alone(
    tree: dict[str, Any], tmp_path: Path, vit: dict[str, Any], size: tuple[int, int], grids: Any
) -> None:
    trained = Vit(settings(tree, vit=vit).vit)
    assert trained.grid == grids[0]
    save_backbone(tmp_path / "backbone.safetensors", trained, "a test")
    chosen = settings(without_vit(tree), backbone=str(tmp_path), image_size=size)
    moved = load_vit(chosen, load_backbone(str(tmp_path)))
    assert isinstance(moved, Vit) and moved.grid == grids[1]
    weights, before = moved.timm.state_dict(), trained.timm.state_dict()
    expected = resize_positions(before["pos_embed"], *grids, "bicubic")
    assert torch.equal(weights["pos_embed"], expected)
    assert all(torch.equal(weights[name], before[name]) for name in before.keys() - {"pos_embed"})
    assert first_loss(chosen) == pytest.approx(math.log(3), abs=1e-6)


def test_a_resnet_is_loaded_whole_for_any_resolution(tree: dict[str, Any], tmp_path: Path) -> None:
    nothing = dict.fromkeys(("patch_size", "width", "depth", "heads"))
    vit = settings(tree, vit={**nothing, "name": "resnetv2_50x1_bit", "pool": "mean"}).vit
    trained = build_encoder(vit)
    save_backbone(tmp_path / "backbone.safetensors", trained, "a test")
    chosen = settings(without_vit(tree), backbone=str(tmp_path), image_size=[20, 12])
    loaded, before = load_vit(chosen, load_backbone(str(tmp_path))), trained.timm.state_dict()
    assert loaded.settings.image_size == (20, 12)
    assert all(torch.equal(loaded.timm.state_dict()[name], value) for name, value in before.items())
