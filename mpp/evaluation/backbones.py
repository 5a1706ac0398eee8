"""The backbone that a transfer names, as a network ready to train: scratch, a run's, or one from outside."""

from dataclasses import fields, replace
from typing import Final

from mpp.errors import CheckpointError, ConfigError
from mpp.evaluation.outside import load_outside, timm_source
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import Encoder, build_encoder
from mpp.model.families import Pool, VitConfig
from mpp.model.vit import Vit, resize_positions
from mpp.training.backbone import Backbone, load_backbone

SCRATCH: Final = "scratch"


def open_backbone(source: str, pool: Pool, image_size: tuple[int, int] | None) -> Backbone | None:
    """Return the backbone that ``source`` names, None for scratch.

    ``pool`` and ``image_size`` are for a network of timm, as in ``load_outside``. Raises ``CheckpointError`` for
    weights that are missing or damaged, ``ConfigError`` for a name that is unknown or none of ours.
    """
    if source == SCRATCH:
        return None
    outside = timm_source(source)
    return load_backbone(source) if outside is None else load_outside(outside, pool, image_size)


def load_vit(settings: TransferConfig, backbone: Backbone | None) -> Encoder:
    """Return the network to fine-tune, at the transfer's resolution; without a backbone its weights are fresh.

    Positions are interpolated, fixed sines and cosines too: a network has met those between its first and its last
    place alone (ViT, section 3.2, "according to their location in the original image"). Raises ``ConfigError`` where
    ``settings.vit``, the network from scratch, contradicts the backbone's, ``CheckpointError`` for foreign weights.
    """
    config = settings.vit if backbone is None else backbone.vit
    drop_path = config.drop_path if settings.drop_path is None else settings.drop_path
    used = replace(config, image_size=settings.image_size or config.image_size, drop_path=drop_path)
    if backbone is not None:
        check_given(settings.vit, used, backbone.vit, origin=backbone.origin)
    vit = build_encoder(used)
    if backbone is None:
        return vit
    weights = dict(backbone.weights)
    try:
        if isinstance(vit, Vit):
            old_grid = (config.image_size[0] // vit.patch[0], config.image_size[1] // vit.patch[1])
            weights["pos_embed"] = resize_positions(weights["pos_embed"], old_grid, vit.grid, settings.interpolation)
        vit.timm.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{settings.backbone} does not hold the weights of its own settings: {error}") from error
    return vit


def check_given(given: VitConfig, *own: VitConfig, origin: str) -> None:
    """Raise ``ConfigError`` for ``vit.*`` that a backbone would ignore; what is its own may be repeated.

    ``own`` are its settings, in use and as it was trained.
    """
    changed = [
        f"vit.{name} is {value}, its own {getattr(own[0], name)}"
        for name, value, default in (
            (field.name, getattr(given, field.name), getattr(VitConfig(), field.name)) for field in fields(VitConfig)
        )
        if value not in (default, *(getattr(settings, name) for settings in own))
    ]
    if changed:
        raise ConfigError(
            f"backbone: {origin} carries its own settings, but {'; '.join(changed)}",
            fix="leave vit.* out, or backbone=scratch for a network of these settings",
        )
