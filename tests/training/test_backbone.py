"""Backbone files carry their settings, come back as they were, and are refused where they are damaged or strange."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import LayerNorm
from timm.models.vision_transformer import ParallelScalingBlock

from mpp.config import resolve
from mpp.errors import CheckpointError, NumericsError
from mpp.model.encoders import build_encoder
from mpp.model.vit import Vit, VitConfig
from mpp.training.backbone import load_backbone, save_backbone

VIT = resolve(
    VitConfig,
    {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 4, "width": 16, "depth": 1, "heads": 2},
)


def test_a_backbone_comes_back_as_it_was(tmp_path: Path) -> None:
    vit = Vit(VIT)
    save_backbone(tmp_path / "backbone.safetensors", vit, "a test")
    for source in (tmp_path, tmp_path / "backbone.safetensors"):
        backbone = load_backbone(str(source))
        assert backbone.vit == VIT
        assert backbone.origin == "a test"
        for name, value in vit.timm.state_dict().items():
            assert torch.equal(backbone.weights[name], value)


def test_a_backbone_is_one_that_timm_loads_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    for pool in ("token", "mean"):
        save_backbone(path, Vit(replace(VIT, pool=pool)), "a test")
        shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
        model.load_state_dict(load_file(path))  # strict: the same names and shapes


def test_a_backbone_of_any_family_is_one_that_timm_loads_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    families = {
        "vit_tiny_patch16_224": {"pool": "map", "parallel": True, "qk_norm": True, "bias": False},
        "vit_tiny_r_s16_p8_224": {"image_size": (32, 64), "patch_size": None},
        "resnetv2_50x1_bit": {"pool": "mean", "patch_size": None, "width": None, "depth": None, "heads": None},
    }
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    norm = partial(LayerNorm, bias=False)
    arguments = {
        "vit_tiny_patch16_224": {
            **{"img_size": 8, "patch_size": 4, "global_pool": "map", "class_token": False},
            **{"block_fn": ParallelScalingBlock, "qk_norm": True, "qkv_bias": False, "norm_layer": norm, **shape},
        },
        "vit_tiny_r_s16_p8_224": {"img_size": (32, 64), **shape},
        "resnetv2_50x1_bit": {},
    }
    for name, changes in families.items():
        encoder = build_encoder(replace(VIT, name=name, **changes))
        save_backbone(path, encoder, "a test")
        assert load_backbone(str(path)).vit == encoder.settings
        timm.create_model(name, num_classes=0, **arguments[name]).load_state_dict(load_file(path))


def test_weights_that_are_not_finite_are_not_handed_out(tmp_path: Path) -> None:
    vit = Vit(VIT)
    vit.timm.pos_embed.data[0, 0, 0] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        save_backbone(tmp_path / "backbone.safetensors", vit, "a test")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_a_backbone_is_found(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, Vit(VIT), "a test")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_backbone(str(path))


def test_what_is_no_backbone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "strange.safetensors", {"mpp": json.dumps({"vit": {"colour": 1}})})
    for name in ("text.safetensors", "other.safetensors", "strange.safetensors"):
        with pytest.raises(CheckpointError, match="not a backbone"):
            load_backbone(str(tmp_path / name))
    with pytest.raises(CheckpointError, match="no backbone at"):
        load_backbone(str(tmp_path / "missing"))
