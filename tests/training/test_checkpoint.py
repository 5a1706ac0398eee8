"""Checkpoints: atomic, verified, never deleted when damaged; backbones carry their settings."""

import json
import resource
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from timm.layers import LayerNorm
from timm.models.vision_transformer import ParallelScalingBlock

from mpp.config import resolve
from mpp.errors import CheckpointError, DiskError, NumericsError
from mpp.model.encoders import build_encoder
from mpp.model.vit import Vit, VitConfig
from mpp.training.checkpoint import (
    CheckpointStore,
    complete_checkpoints,
    load_backbone,
    newest_checkpoint,
    save_backbone,
)

VIT = resolve(
    VitConfig,
    {"name": "vit_tiny_patch16_224", "image_size": (8, 8), "patch_size": 4, "width": 16, "depth": 1, "heads": 2},
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Accelerator())


def save(store: CheckpointStore, step: int) -> Path:
    store.save({"step": step}, lambda folder: (folder / "weights").write_bytes(bytes([step % 256]) * 100) and None)
    return store.folder / f"step-{step:09d}"


def test_the_newest_is_found_and_two_are_kept(store: CheckpointStore) -> None:
    assert store.latest() is None
    for step in (1, 2, 10):
        save(store, step)
    path, facts = store.latest() or (Path(), {})
    assert path.name == "step-000000010"
    assert facts == {"step": 10}
    assert [folder.name for folder in complete_checkpoints(store.folder)] == ["step-000000010", "step-000000002"]


def damage_flip(path: Path) -> None:
    weights = bytearray((path / "weights").read_bytes())
    weights[50] ^= 1
    (path / "weights").write_bytes(weights)


def damage_cut(path: Path) -> None:
    (path / "weights").write_bytes((path / "weights").read_bytes()[:-1])


def damage_remove(path: Path) -> None:
    (path / "weights").unlink()


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove, damage_manifest])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(store: CheckpointStore, damage, capsys) -> None:  # type: ignore[no-untyped-def]
    save(store, 1)
    damage(save(store, 2))
    _, facts = store.latest() or (Path(), {})
    assert facts == {"step": 1}
    assert (store.folder / "step-000000002.corrupt").is_dir()
    assert "warning" in capsys.readouterr().out


def test_where_all_are_damaged_each_reason_is_given(store: CheckpointStore) -> None:
    damage_flip(save(store, 1))
    damage_cut(save(store, 2))
    with pytest.raises(CheckpointError, match=r"(?s)sha256.*|bytes") as caught:
        store.latest()
    assert "step-000000001" in str(caught.value)
    assert "step-000000002" in str(caught.value)


def test_where_all_were_damaged_the_run_does_not_begin_anew_by_itself(store: CheckpointStore) -> None:
    damage_flip(save(store, 1))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            store.latest()


def test_a_disk_that_is_full_is_said_so_and_loses_nothing(store: CheckpointStore) -> None:
    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for write in (
        lambda folder: save_file({"a": torch.zeros(100_000)}, folder / "model.safetensors"),
        lambda folder: torch.save(torch.zeros(100_000), folder / "optimizer.bin"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(DiskError, match="cannot save"):
                store.save({"step": 2}, write)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
    assert (store.latest() or (None, {}))[1] == {"step": 1}
    assert [path.name for path in store.folder.iterdir()] == ["step-000000001"]


def test_a_save_that_fails_leaves_the_old_one_and_no_new_one(store: CheckpointStore) -> None:
    save(store, 1)

    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        store.save({"step": 2}, fail)
    assert (store.latest() or (None, {}))[1] == {"step": 1}
    assert newest_checkpoint(store.folder.parent).name == "step-000000001"


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
