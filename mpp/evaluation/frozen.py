"""A backbone that stays as it is: image features of one of ours or of any network of timm, without gradients.

Shapes: B images, N patches or places of a feature map, D width, H and W pixels.
"""

import difflib
import pickle
import sys
from dataclasses import dataclass
from typing import Any, Final, cast

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation.finetune import SCRATCH, TransferConfig, load_vit
from mpp.model.encoders import Encoder
from mpp.stream.views import ViewConfig
from mpp.training.backbone import load_backbone

TIMM: Final = "timm:"
CLASS_TOKEN, PATCH_MEAN, ATTENTION_POOL = "class_token", "patch_mean", "attention_pool"


@dataclass(frozen=True)
class FrozenBackbone:
    """A network from uint8 images [B, 3, H, W] to features [B, D] by kind, and what it wants to see.

    ``crop_fraction`` is the share of the side that its evaluation view keeps.
    """

    network: nn.Module
    image_size: tuple[int, int]
    crop_fraction: float
    origin: str


def open_frozen(settings: TransferConfig) -> FrozenBackbone:
    """Return the network that ``settings.backbone`` names, in evaluation mode.

    That is a run folder, a backbone file, ``scratch`` (fresh weights of ``settings.vit`` by ``settings.seed``),
    ``timm:NAME`` with the weights that timm knows for it, or ``timm:NAME@FILE`` with weights from a file. Raises
    ``CheckpointError`` for weights that are missing or do not fit, ``ConfigError`` for an unknown name.
    """
    source = settings.backbone
    if source.startswith(TIMM):
        name, _, file = source.removeprefix(TIMM).partition("@")
        frozen = _open_timm(name, file, settings.image_size)
    else:
        backbone = None if source == SCRATCH else load_backbone(source)
        torch.manual_seed(settings.seed)
        vit = load_vit(settings, backbone)
        origin = SCRATCH if backbone is None else backbone.origin
        frozen = FrozenBackbone(OwnFeatures(vit), vit.settings.image_size, ViewConfig().crop_fraction, origin)
    frozen.network.eval().requires_grad_(False)
    return frozen


class OwnFeatures(nn.Module):
    """Features [B, D] by kind of one of our networks."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images_BCHW)
        kinds = {} if features.class_token_BD is None else {CLASS_TOKEN: features.class_token_BD}
        if self.encoder.settings.pool == "map":
            kinds[ATTENTION_POOL] = self.encoder.pooled(features)
        return {**kinds, PATCH_MEAN: features.patches_BND.mean(dim=1)}


class _Timm(nn.Module):
    """A network of timm: tokens [B, prefix + N, D], or a map [B, D, h, w] or [B, h, w, D], become features."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.timm = model
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        timm_model = cast(Any, self.timm)
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        tokens: Tensor = timm_model.forward_features((images_BCHW - mean) / std)
        if tokens.dim() == 4:
            channels_first = tokens.shape[1] == timm_model.num_features
            return {PATCH_MEAN: tokens.mean(dim=(2, 3) if channels_first else (1, 2))}
        kinds = {PATCH_MEAN: tokens[:, getattr(timm_model, "num_prefix_tokens", 0) :].mean(dim=1)}
        if getattr(timm_model, "cls_token", None) is not None:
            kinds = {CLASS_TOKEN: tokens[:, 0], **kinds}
        norm = getattr(timm_model, "fc_norm", None)  # of networks whose final norm comes after pooling
        kinds = kinds if norm is None else {kind: norm(feature) for kind, feature in kinds.items()}
        if getattr(timm_model, "attn_pool", None) is not None:
            kinds = {ATTENTION_POOL: timm_model.forward_head(tokens, pre_logits=True), **kinds}
        return kinds


def _open_timm(name: str, file: str, image_size: tuple[int, int] | None) -> FrozenBackbone:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ConfigError(
            f"backbone: timm knows no network {name!r}",
            fix=f"backbone=timm:{near[0] if near else 'vit_base_patch16_224'}",
        )
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model = timm.create_model(name, pretrained=not file, num_classes=0, **size)
    except TypeError as error:
        raise ConfigError(f"image_size: {name} has a size of its own ({error})", fix="leave image_size out") from error
    except (OSError, RuntimeError) as error:  # what the Hub's client and timm raise
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"timm could not get weights for {name}: {first_line}", fix=f"backbone=timm:{name}@FILE, a local copy"
        ) from error
    if file:
        _load_file(model, name, file)
    view: dict[str, Any] = timm.data.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return FrozenBackbone(
        _Timm(model, view["mean"], view["std"]),
        image_size or (int(view["input_size"][1]), int(view["input_size"][2])),
        float(view["crop_pct"]),
        f"timm {name}, {f'weights of {file}' if file else 'its own weights'}",
    )


def _load_file(model: nn.Module, name: str, file: str) -> None:
    """Load weights as timm stores them; those of a classifier are left out, everything else must be there and fit."""
    try:
        weights = load_state_dict(file)
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        weights = weights if adapt is None else adapt(weights, model)
        found = model.load_state_dict(weights, strict=False)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {file}", fix=f"backbone={TIMM}{name}@FILE") from None
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        first_lines = " ".join(str(error).split("\n")[:2])
        raise CheckpointError(f"{file} does not hold weights of {name}: {first_lines}") from error
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    strangers = [key for key in found.unexpected_keys if not key.startswith(heads)]
    wrong = [f"without {key}" for key in found.missing_keys] + [f"with {key}" for key in strangers]
    if wrong:
        raise CheckpointError(
            f"{file} does not hold weights of {name}: {len(wrong)} do not match, it is {wrong[0]}",
            fix="the name that the weights were trained under",
        )
