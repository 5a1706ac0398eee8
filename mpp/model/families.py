"""Which network a name and its overrides mean: plain and hybrid ViTs and BiT ResNets, all built by timm.

Shapes: H and W pixels.
"""

import copy
import difflib
from functools import partial
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from timm.layers import HybridEmbed, LayerNorm
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer

from mpp.config import config
from mpp.errors import ConfigError
from mpp.model.sizes import SIZES

Pool = Literal["token", "mean", "map"]

_TIMM_POOLS = {"token": "token", "mean": "avg", "map": "map"}
# What a name decides where the settings leave it open.
_OPEN = ("patch_size", "width", "depth", "heads", "parallel", "qk_norm", "bias")
_ANY_SIZE = "vit_base_patch16_224"  # its MLP is four times as wide as its tokens, as in all of SIZES
_PROBE = 64  # pixels; a multiple of every stride


@config
class VitConfig:
    """A timm ViT and what may differ from its name; it travels inside every backbone file."""

    name: str = Field(
        "vit_base_patch16_224",
        description="timm model: any vit_*, hybrids on group-normed ResNets too, or resnetv2_*_bit; also "
        + ", ".join(SIZES)
        + "; the keys below override it",
    )
    image_size: tuple[int, int] = Field((224, 224), description="height and width of the input, pixels")
    patch_size: int | None = Field(None, gt=0, description="side of a patch, pixels")
    width: int | None = Field(None, gt=0, description="width D of the tokens")
    depth: int | None = Field(None, gt=0, description="number of blocks")
    heads: int | None = Field(None, gt=0, description="attention heads; they divide the width")
    parallel: bool | None = Field(None, description="attention beside the MLP in a block, not before it (ViT-22B)")
    qk_norm: bool | None = Field(None, description="norms on queries and keys (ViT-22B)")
    bias: bool | None = Field(None, description="biases in QKV projections and norms; ViT-22B has none")
    pool: Pool = Field(
        "token",
        description="image feature: the class token, the mean of the patches, or attention of a learned query over "
        "them (Scaling ViT; takes the class token's place, learns from labels alone)",
    )
    positions: Literal["learned", "sincos2d"] = Field("learned", description="position embedding")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="pixel mean in [0, 1], per channel")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="pixel deviation in [0, 1], per channel")


def is_resnet(settings: VitConfig) -> bool:
    """Say whether the name is one of timm's BiT ResNets: group norms, so that images do not see their micro-batch."""
    family = settings.name.partition(".")[0]
    return family.startswith("resnetv2_") and family.endswith("_bit") and timm.is_model(settings.name)


def create_vit(settings: VitConfig) -> VisionTransformer:
    """Return timm's ViT without a head; raise ``ConfigError`` for an unknown name or settings that do not fit it."""
    _check_name(settings.name)
    try:
        model = timm.create_model(
            _ANY_SIZE if settings.name in SIZES else settings.name,
            num_classes=0,
            img_size=settings.image_size,
            global_pool=_TIMM_POOLS[settings.pool],
            fc_norm=False,  # one final norm for every token, whatever the pooling
            drop_path_rate=settings.drop_path,
            dynamic_img_size=False,  # the size is the settings', whatever timm has for the name
            **_overrides(settings),
        )
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"vit: timm cannot build {settings.name} with these settings: {error}") from error
    if not isinstance(model, VisionTransformer) or (settings.pool == "token" and not model.has_class_token):
        raise ConfigError(
            f"vit.name: {settings.name} is no plain ViT with a class token", fix="vit.pool=mean or a vit_*_patch* name"
        )
    if isinstance(model.patch_embed, HybridEmbed) and settings.patch_size is not None:
        raise ConfigError(
            f"vit.patch_size: the patches of {settings.name} are as large as its ResNet makes them",
            fix="leave vit.patch_size out",
        )
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        raise ConfigError(
            f"vit.name: {settings.name} normalises over the micro-batch: results would depend on its size",
            fix="vit.name=vit_base_r50_s16_224 or another vit_*_r*_s*",
        )
    height, width = pixels_per_token(model)
    if settings.image_size[0] % height or settings.image_size[1] % width:
        raise ConfigError(f"vit.image_size {settings.image_size} is not a multiple of the patch size {(height, width)}")
    return model


def create_resnet(settings: VitConfig) -> ResNetV2:
    """Return timm's BiT ResNet without a head; raise ``ConfigError`` for settings that only a ViT has."""
    given = [f"vit.{name}" for name in _OPEN if getattr(settings, name) is not None]
    if settings.positions != "learned":
        given.append("vit.positions")
    if given:
        raise ConfigError(f"{', '.join(given)}: {settings.name} is a ResNet and has no such thing", fix="leave it out")
    if settings.pool != "mean":
        raise ConfigError(
            f"vit.pool={settings.pool}: the image feature of {settings.name}, a ResNet, is the mean of its map",
            fix="vit.pool=mean",
        )
    model = timm.create_model(settings.name, num_classes=0, drop_path_rate=settings.drop_path)
    assert isinstance(model, ResNetV2)
    return model


def pixels_per_token(model: VisionTransformer) -> tuple[int, int]:
    """Return the height and width in pixels of the area that a patch token stands for: a hybrid's is its stride."""
    height, width = model.patch_embed.patch_size
    stride = _stride(model.patch_embed.backbone) if isinstance(model.patch_embed, HybridEmbed) else 1
    return int(height) * stride, int(width) * stride


def _overrides(settings: VitConfig) -> dict[str, Any]:
    """Return timm's arguments for whatever the settings, or a size of ours, decide."""
    size = SIZES.get(settings.name)
    chosen = {name: getattr(settings, name) for name in _OPEN}
    chosen = {name: getattr(size, name, None) if value is None else value for name, value in chosen.items()}
    arguments: dict[str, Any] = {
        "patch_size": chosen["patch_size"],
        "embed_dim": chosen["width"],
        "depth": chosen["depth"],
        "num_heads": chosen["heads"],
        "qk_norm": chosen["qk_norm"],
        "qkv_bias": chosen["bias"],
    }
    if chosen["parallel"] is not None:
        arguments["block_fn"] = ParallelScalingBlock if chosen["parallel"] else Block
    if chosen["bias"] is False:
        arguments["norm_layer"] = partial(LayerNorm, bias=False)
    if settings.pool == "map":
        arguments["class_token"] = False
    return {key: value for key, value in arguments.items() if value is not None}


def _check_name(name: str) -> None:
    if name in SIZES or (name.startswith("vit_") and timm.is_model(name)):
        return
    known = [*timm.list_models("vit_*"), *timm.list_models("resnetv2_*_bit"), *SIZES]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    raise ConfigError(
        f"vit.name: timm knows no ViT and no BiT ResNet {name!r}", fix=f"vit.name={near[0] if near else _ANY_SIZE}"
    )


def _stride(backbone: torch.nn.Module) -> int:
    """Return how many pixels one place of a hybrid's feature map stands for, along a side."""
    probe = copy.deepcopy(backbone).to("meta").eval()  # nothing is computed, no statistics change
    features = probe(torch.zeros(1, 3, _PROBE, _PROBE, device="meta"))
    last = features[-1] if isinstance(features, list | tuple) else features
    return _PROBE // int(last.shape[-1])
