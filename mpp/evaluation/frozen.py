"""A backbone that stays as it is: image features of one of ours or of any network of timm, without gradients.

Shapes: B images, N patches or places of a feature map, D width, H and W pixels.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpp.evaluation.backbones import SCRATCH, check_given, load_vit
from mpp.evaluation.outside import TimmSource, open_timm, timm_source, timm_view
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import Encoder
from mpp.model.families import VitConfig
from mpp.stream.views import ViewConfig
from mpp.training.backbone import load_backbone

CLASS_TOKEN, PATCH_MEAN, ATTENTION_POOL = "class_token", "patch_mean", "attention_pool"


@dataclass(frozen=True)
class FrozenBackbone:
    """A network from uint8 images [B, 3, H, W] to features [B, D] by kind, and the evaluation view it wants to see."""

    network: nn.Module
    image_size: tuple[int, int]
    view: ViewConfig
    origin: str


def open_frozen(settings: TransferConfig) -> FrozenBackbone:
    """Return the network that ``settings.backbone`` names, in evaluation mode.

    That is a run folder, a backbone file, ``scratch`` (fresh weights of ``settings.vit`` by ``settings.seed``),
    ``timm:NAME`` with the weights that timm knows for it, or ``timm:NAME@FILE`` with weights from a file. Raises
    ``CheckpointError`` for weights that are missing or do not fit, ``ConfigError`` for an unknown name.
    """
    source = settings.backbone
    outside = timm_source(source)
    if outside is not None:
        check_given(settings.vit, VitConfig(pool=settings.vit.pool), origin=outside.origin)
        frozen = _open_timm(outside, settings.image_size)
    else:
        backbone = None if source == SCRATCH else load_backbone(source)
        torch.manual_seed(settings.seed)
        vit = load_vit(settings, backbone)
        origin = SCRATCH if backbone is None else backbone.origin
        frozen = FrozenBackbone(OwnFeatures(vit), vit.settings.image_size, ViewConfig(), origin)
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


def _open_timm(source: TimmSource, image_size: tuple[int, int] | None) -> FrozenBackbone:
    model = open_timm(source, image_size)
    own = timm_view(model)
    view = replace(ViewConfig(), crop_fraction=own.crop_fraction)
    return FrozenBackbone(_Timm(model, own.mean, own.std), image_size or own.image_size, view, source.origin)
