"""What a masked-patch model sees and says, as images: original, corrupted, predicted.

The predicted image shows predictions at corrupted patches only, in the colours of the target, never the true
statistics of a patch.

Shapes: B images, H x W pixels, N patches, M corrupted patches of p x q pixels.
"""

import torch
from torch import Tensor

from mpp.model.masking import Corruption
from mpp.model.targets import cut_patches
from mpp.model.tasks import MaskedPatches
from mpp.stream.batches import Batch

_GRAY = 128  # stands for the mask token, which has no colour


@torch.no_grad()
def reconstruct(task: MaskedPatches, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return original, corrupted and predicted images, each uint8 [B, 3, H, W]; masked patches are gray."""
    _, predictions, corruption = task.predict(batch)
    patches = cut_patches(batch.images, task.vit.patch)
    painted = task.settings.target.paint(predictions, task.vit.patch)
    corrupted = _corrupted(patches, corruption)
    predicted = _put(patches, corruption.positions_BM, painted)
    return batch.images, _join(corrupted, task.vit.grid), _join(predicted, task.vit.grid)


def picture_grid(task: MaskedPatches, batch: Batch) -> Tensor:
    """Return one picture uint8 [3 * H, B * W, 3]: a column an image, its original above its corrupted and predicted.

    The task is left in the mode, training or not, that it was in.
    """
    was_training = task.training
    task.eval()
    try:
        rows_RB3HW = torch.stack(reconstruct(task, batch))
    finally:
        task.train(was_training)
    return rows_RB3HW.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).cpu()


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
