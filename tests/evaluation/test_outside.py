"""A network of timm becomes a backbone of ours with timm's own features; what cannot is refused by name."""

import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation import outside
from mpp.evaluation.backbones import load_vit, open_backbone
from mpp.evaluation.outside import TimmSource, load_outside, timm_source
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import Encoder
from mpp.model.vit import resize_positions

VIT = "vit_tiny_patch16_224"


def weights_file(folder: Path, name: str, **arguments: Any) -> tuple[Any, Path]:
    """Return a network of timm with fresh weights and a file that holds them."""
    torch.manual_seed(1)
    model = timm.create_model(name, **arguments).eval()
    for weight in model.parameters():
        if weight.dim() == 1:  # fresh norms, biases and layer scales are alike
            torch.nn.init.normal_(weight, std=0.5)
    torch.save(model.state_dict(), folder / "weights.pth")
    return model, folder / "weights.pth"


def opened(backbone: str, pool: str = "token", **changes: Any) -> Encoder:
    tree = {"backbone": backbone, "shards": "", "out": "", "vit": {"pool": pool}, **changes}
    settings = resolve(TransferConfig, tree)
    return load_vit(settings, open_backbone(backbone, settings.vit.pool, settings.image_size)).eval()


def pixels(model: Any, images: torch.Tensor) -> torch.Tensor:
    view = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(view[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


SIZES = {"img_size": 32}
NETWORKS: list[Any] = [
    (VIT, SIZES, "token"),
    (VIT, {**SIZES, "num_classes": 7}, "mean"),
    ("vit_xsmall_patch16_clip_224", SIZES, "token"),  # norm before the blocks, colours of its own
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, "mean"),  # registers, layer scale
    ("vit_tiny_r_s16_p8_224", SIZES, "token"),
    ("vit_medium_patch16_gap_240", SIZES, "mean"),
    ("resnetv2_50x1_bit", {}, "mean"),
    pytest.param("vit_base_patch16_siglip_224", SIZES, "map", marks=pytest.mark.slow),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "arguments", "pool"), NETWORKS)
def test_features_are_timms(tmp_path: Path, name: str, arguments: dict[str, Any], pool: str) -> None:
    model, file = weights_file(tmp_path, name, **arguments)
    side = arguments.get("img_size", 40)
    ours = opened(f"timm:{name}@{file}", pool, image_size=[side, side])
    images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = model.forward_features(pixels(model, images))
    found = ours(images)
    if expected.dim() == 4:
        pooled = expected.mean(dim=(2, 3))
    elif pool == "map":
        pooled = model.attn_pool(expected[:, model.num_prefix_tokens :])
    else:
        patches = expected[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found.patches_BND, patches, atol=1e-4, rtol=1e-4)
        pooled = patches.mean(dim=1) if pool == "mean" else expected[:, 0]
    torch.testing.assert_close(ours.pooled(found), pooled, atol=1e-4, rtol=1e-4)


def test_positions_of_a_file_are_interpolated_once_from_their_own_grid(tmp_path: Path) -> None:
    model, file = weights_file(tmp_path, VIT, img_size=(32, 32))
    for size in ((48, 48), (32, 64), (16, 64)):  # the last has as many patches
        vit = opened(f"timm:{VIT}@{file}", image_size=size, interpolation="bilinear")
        expected = resize_positions(model.pos_embed, (2, 2), (size[0] // 16, size[1] // 16), "bilinear")
        assert torch.equal(vit.timm.pos_embed, expected)
    assert opened(f"timm:{VIT}@{file}").settings.image_size == (32, 32)
    model, file = weights_file(tmp_path, VIT)  # 224 px
    vit = opened(f"timm:vit_tiny_patch16_384@{file}", image_size=[112, 448], interpolation="bilinear")
    assert torch.equal(vit.timm.pos_embed, resize_positions(model.pos_embed, (14, 14), (7, 28), "bilinear"))
    model, file = weights_file(tmp_path, VIT, img_size=(32, 48))
    assert torch.equal(opened(f"timm:{VIT}@{file}", image_size=[32, 48]).timm.pos_embed, model.pos_embed)
    with pytest.raises(CheckpointError, match="positions of 6 patches, no square"):
        opened(f"timm:{VIT}@{file}")


@pytest.mark.parametrize(
    ("name", "pool", "words"),
    [
        ("swin_tiny_patch4_window7_224", "mean", "no plain ViT and no BiT ResNet"),
        ("vit_relpos_small_patch16_224", "token", "no plain ViT"),
        ("vit_small_patch16_rope_224", "token", "no plain ViT"),
        ("deit_tiny_patch16_224", "token", "no plain ViT"),
        ("resnetv2_50", "mean", "no plain ViT"),
        ("vit_base_patch16_reg4_gap_256", "mean", "normalises after it has pooled"),
        ("vit_medium_patch16_gap_240", "token", "has no class token, and vit.pool is token\n.*fix: vit.pool=mean"),
        (VIT, "map", "no pooling by attention, and vit.pool is map\n.*fix: vit.pool=token or vit.pool=mean"),
        ("vit_tiny_patch16_225", "token", f"knows no network.*\n.*{VIT}"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_before_its_weights_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, pool: str, words: str
) -> None:
    monkeypatch.setattr(outside, "open_timm", None)
    with pytest.raises(ConfigError, match=words):
        opened(f"timm:{name}", pool)


def test_a_resnet_has_no_pool_but_the_mean(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vit\.pool=mean"):
        opened(f"timm:resnetv2_50x1_bit@{weights_file(tmp_path, 'resnetv2_50x1_bit')[1]}", "token")


def test_settings_that_the_name_decides_are_refused(tmp_path: Path) -> None:
    _, file = weights_file(tmp_path, VIT, img_size=32)
    with pytest.raises(ConfigError, match=r"vit\.width is 16"):
        opened(f"timm:{VIT}@{file}", vit={"width": 16, "pool": "mean"})


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    _, file = weights_file(tmp_path, VIT, img_size=32, depth=2)
    with pytest.raises(CheckpointError, match=r"do not match, it is without blocks\.2"):
        opened(f"timm:{VIT}@{file}")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="does not hold weights"):
        opened(f"timm:{VIT}@{file}")
    with pytest.raises(CheckpointError, match="no weights at"):
        opened(f"timm:{VIT}@{tmp_path / 'missing'}")


def test_names_are_taken_apart() -> None:
    assert timm_source("runs/timm") is None
    assert timm_source(f"timm:{VIT}") == TimmSource(VIT, "")
    assert timm_source(f"timm:{VIT}@a@b.pth") == TimmSource(VIT, "a@b.pth")
    assert TimmSource(VIT, "f").origin == f"timm {VIT}, weights of f"


def test_weights_of_a_file_ask_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError("the Hub was asked")

    _, file = weights_file(tmp_path, VIT, img_size=32)
    monkeypatch.setattr(huggingface_hub, "get_session", asked)
    monkeypatch.setattr(outside, "offline_without_hub", asked)
    opened(f"timm:{VIT}@{file}")


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as closed:  # a port at which nobody answers
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)  # the client sleeps between its tries
    with pytest.raises(CheckpointError, match=f"could not get weights for {VIT}(.|\n)*fix: backbone=timm:{VIT}@FILE"):
        load_outside(TimmSource(VIT, ""), "token", None)
    assert sum(pauses) < 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
