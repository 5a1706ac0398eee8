"""Networks of timm with weights from outside: what ``timm:NAME`` and ``timm:NAME@FILE`` mean, loaded and checked.

``timm:NAME`` has the weights that timm knows for the name, ``timm:NAME@FILE`` those of a local file.
Shapes: N patches, D width.
"""

import difflib
import math
import pickle
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpp.errors import CheckpointError, ConfigError
from mpp.model.families import Pool, VitConfig, is_resnet, pixels_per_token
from mpp.sources.hub import offline_without_hub
from mpp.training.backbone import Backbone

TIMM: Final = "timm:"


class TimmSource(NamedTuple):
    """A network of timm by name, and the file of its weights; without one the weights are timm's own."""

    name: str
    file: str

    @property
    def origin(self) -> str:
        """Say in results where the weights come from."""
        return f"timm {self.name}, {f'weights of {self.file}' if self.file else 'its own weights'}"


class TimmView(NamedTuple):
    """What a network was trained to see: height and width, pixels; mean and deviation in [0, 1]; the share it keeps."""

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float


def timm_source(backbone: str) -> TimmSource | None:
    """Take ``timm:NAME`` or ``timm:NAME@FILE`` apart, None for whatever else; ``ConfigError`` for an unknown name."""
    if not backbone.startswith(TIMM):
        return None
    name, _, file = backbone.removeprefix(TIMM).partition("@")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ConfigError(
            f"backbone: timm knows no network {name!r}",
            fix=f"backbone={TIMM}{near[0] if near else 'vit_base_patch16_224'}",
        )
    return TimmSource(name, file)


def open_timm(source: TimmSource, image_size: tuple[int, int] | None) -> nn.Module:
    """Return timm's network without its head, for images of ``image_size`` or of its own.

    Raises ``CheckpointError`` for weights that are missing or do not fit, ``ConfigError`` for a size that is fixed.
    """
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        with nullcontext() if source.file else offline_without_hub():
            model = timm.create_model(source.name, pretrained=not source.file, num_classes=0, **size)
    except TypeError as error:
        raise ConfigError(
            f"image_size: {source.name} has a size of its own ({error})", fix="leave image_size out"
        ) from error
    except (OSError, RuntimeError) as error:  # what the Hub's client and timm raise
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"timm could not get weights for {source.name}: {first_line}",
            fix=f"backbone={TIMM}{source.name}@FILE, a local copy",
        ) from error
    if source.file:
        _put(read_weights(source), model, source)
    return model


def timm_view(model: nn.Module) -> TimmView:
    """Return what a network of timm was trained to see."""
    view: dict[str, Any] = timm.data.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return TimmView(
        (int(view["input_size"][1]), int(view["input_size"][2])), view["mean"], view["std"], float(view["crop_pct"])
    )


def load_outside(source: TimmSource, pool: Pool, image_size: tuple[int, int] | None) -> Backbone:
    """Return timm's weights as a backbone of ours that pools its features as ``pool`` says.

    It has the resolution of its weights; ``image_size`` names that of positions in a file that form no square. Raises
    ``ConfigError`` for a network that is none of ours, and as ``open_timm``.
    """
    with torch.device("meta"):
        bare = timm.create_model(source.name, num_classes=0)
    _check_ours(bare, source.name, pool)
    own = getattr(bare, "patch_embed", None)
    size = None if own is None else (int(own.img_size[0]), int(own.img_size[1]))
    if source.file and isinstance(bare, VisionTransformer):
        size = _size_of_positions(read_weights(source), bare, source, image_size)
    model = open_timm(source, size)
    view = timm_view(model)
    vit = VitConfig(name=source.name, image_size=size or view.image_size, pool=pool, mean=view.mean, std=view.std)
    weights = {name: value for name, value in model.state_dict().items() if _wanted(name, pool)}
    return Backbone(vit, weights, source.origin)


def read_weights(source: TimmSource) -> dict[str, Any]:
    """Read a file of weights as timm stores them; raise ``CheckpointError``."""
    try:
        weights: dict[str, Any] = load_state_dict(source.file)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {source.file}", fix=f"backbone={TIMM}{source.name}@FILE") from None
    except _NO_WEIGHTS as error:
        raise _not_weights(source, error) from error
    return weights


_NO_WEIGHTS = (
    OSError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    AttributeError,
    TypeError,
    KeyError,
    EOFError,
)


def _not_weights(source: TimmSource, error: Exception) -> CheckpointError:
    first_lines = " ".join(str(error).split("\n")[:2])
    return CheckpointError(f"{source.file} does not hold weights of {source.name}: {first_lines}")


def _put(weights: dict[str, Any], model: nn.Module, source: TimmSource) -> None:
    """Load weights; those of a classifier are left out, everything else must be there and fit."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found = model.load_state_dict(weights if adapt is None else adapt(weights, model), strict=False)
    except _NO_WEIGHTS as error:
        raise _not_weights(source, error) from error
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    strangers = [key for key in found.unexpected_keys if not key.startswith(heads)]
    wrong = [f"without {key}" for key in found.missing_keys] + [f"with {key}" for key in strangers]
    if wrong:
        raise CheckpointError(
            f"{source.file} does not hold weights of {source.name}: {len(wrong)} do not match, it is {wrong[0]}",
            fix="the name that the weights were trained under",
        )


def _check_ours(model: nn.Module, name: str, pool: Pool) -> None:
    """Raise ``ConfigError`` for a network that could not be fine-tuned with the features that timm gives it."""
    probe = "mpp probe takes any network of timm; to fine-tune, a vit_* or resnetv2_*_bit"
    if isinstance(model, ResNetV2) and is_resnet(VitConfig(name=name)):
        return
    if type(model) is not VisionTransformer or not name.startswith("vit_"):
        raise ConfigError(f"backbone: {name} is no plain ViT and no BiT ResNet", fix=probe)
    if not isinstance(model.fc_norm, nn.Identity):
        raise ConfigError(f"backbone: {name} normalises after it has pooled, which is not carried", fix=probe)
    has = {"token": model.has_class_token, "mean": True, "map": model.attn_pool is not None}
    if not has[pool]:
        what = "class token" if pool == "token" else "pooling by attention"
        fitting = ", ".join(f"vit.pool={name}" for name, there in has.items() if there)
        raise ConfigError(f"backbone: {name} has no {what}, and vit.pool is {pool}", fix=fitting.replace(", ", " or "))


def _wanted(name: str, pool: Pool) -> bool:
    return pool == "map" or not name.startswith("attn_pool.")


def _size_of_positions(
    weights: Mapping[str, Any], model: VisionTransformer, source: TimmSource, image_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the height and width, pixels, that the positions of a file belong to.

    Otherwise timm would resize them to the name's own resolution first, and they would be interpolated twice.
    """
    own, (height, width) = model.patch_embed.img_size, pixels_per_token(model)
    stored = weights.get("pos_embed")
    if not isinstance(stored, Tensor) or stored.dim() != 3 or model.pos_embed is None:
        return int(own[0]), int(own[1])
    places = model.patch_embed.num_patches
    patches = stored.shape[1] - (model.pos_embed.shape[1] - places)
    if patches == places:
        return int(own[0]), int(own[1])
    side = math.isqrt(max(0, patches))
    if side and side * side == patches:
        return side * height, side * width
    if image_size is not None and patches * height * width == image_size[0] * image_size[1]:
        return image_size
    raise CheckpointError(
        f"{source.file} has positions of {patches} patches, no square, {source.name} has {places}",
        fix="image_size=[HEIGHT,WIDTH] that the weights were trained at",
    )
