"""A frozen backbone gives the features of its network: ours, and timm's with and without a class token."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation.backbones import load_vit
from mpp.evaluation.frozen import ATTENTION_POOL, CLASS_TOKEN, PATCH_MEAN, FrozenBackbone, _Timm, open_frozen
from mpp.evaluation.recipe import TransferConfig
from mpp.training.backbone import load_backbone

VIT = "vit_tiny_patch16_224"
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def opened(backbone: str, **changes: Any) -> FrozenBackbone:
    return open_frozen(resolve(TransferConfig, {"backbone": backbone, "shards": "", "out": "", **changes}))


def weights_file(folder: Path, name: str, **arguments: Any) -> tuple[torch.nn.Module, Path]:
    """Return a network of timm with fresh weights and a file that holds them."""
    torch.manual_seed(1)
    model = timm.create_model(name, **arguments).eval()
    torch.save(model.state_dict(), folder / "weights.pth")
    return model, folder / "weights.pth"


def test_features_of_a_run_are_those_of_its_network(tiny_run: Path) -> None:
    frozen = opened(str(tiny_run))
    vit = load_vit(resolve(TransferConfig, {"backbone": "", "shards": "", "out": ""}), load_backbone(str(tiny_run)))
    images = IMAGES[..., :8, :8]
    expected, found = vit.eval()(images), frozen.network(images)
    assert (frozen.image_size, frozen.view.crop_fraction) == ((8, 8), 0.875)
    assert frozen.origin.startswith("masked_patches, 2 steps")
    assert expected.class_token_BD is not None
    torch.testing.assert_close(found[CLASS_TOKEN], expected.class_token_BD)
    torch.testing.assert_close(found[PATCH_MEAN], expected.patches_BND.mean(1))
    assert not found[PATCH_MEAN].requires_grad


def test_scratch_is_a_function_of_its_seed(tiny_vit: dict[str, Any]) -> None:
    images = IMAGES[..., :8, :8]
    first, again, other = (opened("scratch", vit=tiny_vit, seed=seed).network(images)[PATCH_MEAN] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("num_classes", [0, 7, 1000])
def test_weights_of_a_file_give_timms_features_whatever_head_was_on_them(tmp_path: Path, num_classes: int) -> None:
    model, file = weights_file(tmp_path, VIT, img_size=32, num_classes=num_classes)
    frozen = opened(f"timm:{VIT}@{file}", image_size=[32, 32])
    assert frozen.image_size == (32, 32)
    with torch.no_grad():
        tokens = model.forward_features((IMAGES / 255 - 0.5) / 0.5)
    found = frozen.network(IMAGES)
    torch.testing.assert_close(found[CLASS_TOKEN], tokens[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[PATCH_MEAN], tokens[:, 1:].mean(1), atol=1e-4, rtol=1e-4)


def test_a_network_sees_its_own_size_crop_and_colours(tmp_path: Path) -> None:
    _, file = weights_file(tmp_path, "resnet10t")
    frozen = opened(f"timm:resnet10t@{file}")
    view = timm.data.resolve_model_data_config(timm.create_model("resnet10t"))
    assert frozen.image_size == tuple(view["input_size"][1:]) and frozen.view.crop_fraction == view["crop_pct"]
    assert (frozen.network.mean.flatten() / 255).tolist() == pytest.approx(view["mean"])
    assert (frozen.network.std.flatten() / 255).tolist() == pytest.approx(view["std"])


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_a_feature_map_is_averaged_over_its_places(tmp_path: Path, name: str) -> None:
    model, file = weights_file(tmp_path, name, num_classes=0)
    frozen = opened(f"timm:{name}@{file}")
    view = timm.data.resolve_model_data_config(model)
    images = torch.nn.functional.interpolate(IMAGES.float(), frozen.image_size).round().to(torch.uint8)
    mean, std = (torch.tensor(view[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        pooled = model((images / 255 - mean) / std)  # timm's own pooling
    found = frozen.network(images)
    assert list(found) == [PATCH_MEAN]
    torch.testing.assert_close(found[PATCH_MEAN], pooled, atol=1e-4, rtol=1e-4)


def test_what_attention_pools_is_a_feature_of_its_own(tmp_path: Path, tiny_vit: dict[str, Any]) -> None:
    frozen = opened("scratch", vit={**tiny_vit, "pool": "map"})
    images = IMAGES[..., :8, :8]
    network: Any = frozen.network
    found = network(images)
    assert set(found) == {PATCH_MEAN, ATTENTION_POOL}
    torch.testing.assert_close(found[ATTENTION_POOL], network.encoder.pooled(network.encoder(images)))
    assert not torch.allclose(found[ATTENTION_POOL], found[PATCH_MEAN], atol=1e-2)
    name, size = "vit_base_patch16_siglip_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}
    outside = timm.create_model(name, num_classes=0, **size).eval()
    features = _Timm(outside, (0.5,) * 3, (0.5,) * 3)
    large = torch.nn.functional.interpolate(IMAGES.float(), 224).round().to(torch.uint8)
    with torch.no_grad():
        found, pooled = features(large), outside((large / 255 - 0.5) / 0.5)
    assert set(found) == {PATCH_MEAN, ATTENTION_POOL}
    torch.testing.assert_close(found[ATTENTION_POOL], pooled, atol=1e-4, rtol=1e-4)


def test_a_norm_after_pooling_is_kept_and_registers_are_no_patches(tmp_path: Path) -> None:
    _, file = weights_file(tmp_path, VIT, img_size=32, num_classes=0)
    frozen = opened(f"timm:{VIT}@{file}", image_size=[32, 32])
    network: Any = frozen.network
    network.timm = timm.create_model(VIT, img_size=32, num_classes=0, global_pool="avg", reg_tokens=2).eval()
    torch.nn.init.normal_(network.timm.fc_norm.weight)
    with torch.no_grad():
        pooled = network.timm((IMAGES / 255 - 0.5) / 0.5)
        torch.testing.assert_close(network(IMAGES)[PATCH_MEAN], pooled, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, file = weights_file(tmp_path, VIT, img_size=32, depth=2)
    with pytest.raises(CheckpointError, match=r"do not match, it is without blocks\.2"):
        opened(f"timm:{VIT}@{file}", image_size=[32, 32])
    with pytest.raises(CheckpointError, match="does not hold weights of vit_small"):
        opened(f"timm:vit_small_patch16_224@{file}", image_size=[32, 32])
    with pytest.raises(CheckpointError, match="no weights at"):
        opened(f"timm:{VIT}@{tmp_path / 'missing'}")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(CheckpointError, match=r"text\.pth does not hold weights"):
        opened(f"timm:{VIT}@{tmp_path / 'text.pth'}")
    with pytest.raises(ConfigError, match="knows no network") as unknown:
        opened("timm:vit_tiny_patch16_225")
    assert VIT in str(unknown.value)
    with pytest.raises(ConfigError, match="has a size of its own"):
        opened(f"timm:resnet10t@{file}", image_size=[32, 32])
    with pytest.raises(CheckpointError, match="no backbone at"):
        opened("missing")


def test_weights_that_cannot_be_had_are_not_replaced_by_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(CheckpointError, match="could not get weights for vit_tiny"):
        opened(f"timm:{VIT}")
