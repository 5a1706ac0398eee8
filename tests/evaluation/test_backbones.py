"""A backbone carries its own settings; at another resolution its positions are interpolated, whatever they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation.backbones import load_vit, open_backbone
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.vit import Vit, resize_positions
from mpp.training.backbone import Backbone, load_backbone, save_backbone


def settings(backbone: str = "scratch", **changes: Any) -> TransferConfig:
    return resolve(TransferConfig, {"backbone": backbone, "shards": "", "out": "", **changes})


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
    vit = load_vit(settings(image_size=new, interpolation=how), backbone)
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
        vit = load_vit(settings(drop_path=given), backbone)
        assert vit.settings.drop_path == used
        assert getattr(vit.timm.blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(used)


def test_settings_that_a_backbone_would_ignore_are_refused_and_its_own_may_be_repeated(
    tiny_vit: dict[str, Any],
) -> None:
    backbone = trained(tiny_vit)
    for given in ({}, tiny_vit, {**tiny_vit, "image_size": [12, 12], "drop_path": 0.2}):
        assert load_vit(settings(vit=given, image_size=[12, 12], drop_path=0.2), backbone).width == 16
    for given, words in (
        ({"width": 32}, "vit.width is 32, its own 16"),
        (
            {**tiny_vit, "depth": 3, "image_size": [9, 9]},
            r"vit.image_size is \(9, 9\), its own \(8, 8\); vit.depth is 3",
        ),
    ):
        with pytest.raises(ConfigError, match=words) as refused:
            load_vit(settings(vit=given), backbone)
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
        load_vit(settings(), foreign)
