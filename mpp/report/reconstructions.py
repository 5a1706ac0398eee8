"""What a masked-patch model sees and says: original, corrupted and predicted images of a finished run.

The predicted picture shows predictions at corrupted patches only, in the colours of the target, never the true
statistics of a patch.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mpp.config import read_yaml, resolve
from mpp.errors import CheckpointError, ConfigError
from mpp.model.masking import Corruption
from mpp.model.targets import cut_patches
from mpp.model.tasks import MaskedPatches, MaskedPatchesConfig
from mpp.model.vit import Vit
from mpp.report.plots import reconstruction_picture
from mpp.stream.batches import Batch
from mpp.stream.loader import evaluation_batches
from mpp.stream.mixture import open_mixture
from mpp.training.checkpoint import newest_checkpoint
from mpp.training.pretraining import PretrainConfig

_GRAY = 128  # stands for the mask token, which has no colour


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


@torch.no_grad()
def reconstruct(task: MaskedPatches, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return original, corrupted and predicted images, each uint8 [B, 3, H, W]; masked patches are gray."""
    _, predictions, corruption = task.predict(batch)
    patches = cut_patches(batch.images, task.vit.patch)
    painted = task.settings.target.paint(predictions, task.vit.patch)
    corrupted = _corrupted(patches, corruption)
    predicted = _put(patches, corruption.positions_BM, painted)
    return batch.images, _join(corrupted, task.vit.grid), _join(predicted, task.vit.grid)


def _corrupted(patches_BN3pq: Tensor, corruption: Corruption) -> Tensor:
    masked, other, _ = corruption.counts
    sources = corruption.sources_BO[..., None, None, None].expand(-1, -1, *patches_BN3pq.shape[2:])
    gray = torch.full_like(patches_BN3pq[:, :masked], _GRAY)
    values = torch.cat([gray, patches_BN3pq.gather(1, sources)], dim=1)
    return _put(patches_BN3pq, corruption.positions_BM[:, : masked + other], values)


def _put(patches_BN3pq: Tensor, positions_BM: Tensor, values_BM3pq: Tensor) -> Tensor:
    places = positions_BM[..., None, None, None].expand(-1, -1, *patches_BN3pq.shape[2:])
    return patches_BN3pq.scatter(1, places, values_BM3pq)


def _join(patches_BN3pq: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo ``cut_patches``."""
    rows: Tensor = patches_BN3pq.unflatten(1, grid)
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
