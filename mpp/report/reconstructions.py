"""The picture of a finished run of masked patch prediction: original, corrupted and predicted images.

What the images show is said in ``mpp/model/reconstruction.py``.
"""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from mpp.config import resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.model.reconstruction import reconstruct
from mpp.model.tasks import MaskedPatches, MaskedPatchesConfig
from mpp.model.vit import Vit
from mpp.plain_yaml import read_yaml
from mpp.report.plots import reconstruction_picture
from mpp.stream.loader import evaluation_batches
from mpp.stream.mixture import open_mixture
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.recipe import PretrainConfig


def draw_reconstructions(run: str, path: str, num_images: int) -> None:
    """Write a picture of ``num_images`` images of the run's shards: original, corrupted, predicted.

    Raises ``ConfigError`` where the run did not train masked patch prediction or ``path`` is no .png or .svg,
    ``CheckpointError`` where it is no run or has no checkpoint.
    """
    if not (Path(run) / "config.yaml").is_file():
        raise CheckpointError(f"{run} is no run: it has no config.yaml", fix="the folder of a run of mpp pretrain")
    settings = resolve(PretrainConfig, read_yaml(Path(run) / "config.yaml"), where=run)
    if not isinstance(settings.task, MaskedPatchesConfig):
        raise ConfigError(
            f"{run} trained {settings.task.kind}, there are no patches to show", fix="a run of task.kind=masked_patches"
        )
    task = MaskedPatches(Vit(settings.vit), settings.task, seed=settings.seed).eval()
    try:
        task.load_state_dict(load_file(newest_checkpoint(Path(run)) / "model.safetensors"))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{run}: the newest checkpoint holds no plain model.safetensors, as after DeepSpeed ({error})"
        ) from error
    if Path(path).suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: pictures are .png or .svg", fix=f"picture={Path(path).with_suffix('.png')}")
    shards = open_mixture(settings.shards, settings.split)
    subset = np.linspace(0, shards.samples - 1, min(num_images, shards.samples), dtype=np.int64)
    batch = next(evaluation_batches(shards, settings.view, settings.vit.image_size, batch=len(subset), subset=subset))
    reconstruction_picture(*reconstruct(task, batch), Path(path))
