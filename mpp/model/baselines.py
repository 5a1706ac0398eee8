"""What masked patch prediction reaches without learning: the figures every training curve is held against.

All are on the 3-bit mean colour of patches (or as many bits as the target has), measured on the corpus itself.
Shapes: B images, N patches, grid (h, w).
"""

import torch
from torch import Tensor

from mpp.model.masking import Mask
from mpp.model.targets import color_classes, cut_patches, uniform_loss

_SIGMA = 1.0  # width of the Gaussian in patches; the nearest neighbours dominate


def trivial_baselines(
    images_B3HW: Tensor, ids_B: Tensor, patch: tuple[int, int], mask: Mask, bits: int, *, seed: int
) -> dict[str, float]:
    """Measure the trivial predictions on uint8 images, under the corruption that training draws in its first epoch.

    Losses in nats: ``uniform_loss`` (nothing known), ``marginal_loss`` (entropy of the colour classes, the best
    constant prediction). Accuracies: ``majority_accuracy``, ``visible_mean_accuracy`` (mean colour of the
    uncorrupted patches), ``interpolation_accuracy`` (Gaussian mean of uncorrupted neighbours).
    """
    patches = cut_patches(images_B3HW, patch)
    classes_BN = color_classes(patches, bits)
    frequencies = torch.bincount(classes_BN.flatten(), minlength=1 << (3 * bits)).double() / classes_BN.numel()
    present = frequencies[frequencies > 0]
    grid = (images_B3HW.shape[2] // patch[0], images_B3HW.shape[3] // patch[1])
    corruption = mask.draw(ids_B, grid, seed=seed, epoch=0)
    corrupted_BN = torch.zeros_like(classes_BN, dtype=torch.bool).scatter(1, corruption.positions_BM, True)
    colors_BN3 = patches.float().mean((-2, -1))
    near, everywhere = _gaussian(grid), torch.ones(classes_BN.shape[1], classes_BN.shape[1])

    def accuracy(weights_NN: Tensor) -> float:
        hits = _predict(colors_BN3, ~corrupted_BN, weights_NN, bits) == classes_BN
        return float(hits[corrupted_BN].float().mean())

    return {
        "uniform_loss": uniform_loss(bits),
        "marginal_loss": float(-(present * present.log()).sum()),
        "majority_accuracy": float(frequencies.max()),
        "visible_mean_accuracy": accuracy(everywhere),
        "interpolation_accuracy": accuracy(near),
    }


def _predict(colors_BN3: Tensor, visible_BN: Tensor, weights_NN: Tensor, bits: int) -> Tensor:
    """Return the class [B, N] of the weighted mean colour of the visible patches, mid-gray where none is visible."""
    seen = visible_BN.float()
    total = torch.einsum("nm,bm,bmc->bnc", weights_NN, seen, colors_BN3)
    weight = torch.einsum("nm,bm->bn", weights_NN, seen)[..., None]
    mean = torch.where(weight > 0, total / weight.clamp(min=1e-30), torch.full_like(total, 127.5))
    return color_classes(mean.round().to(torch.uint8)[..., None, None], bits)


def _gaussian(grid: tuple[int, int]) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).flatten(0, 1).float()
    return torch.exp(-torch.cdist(places, places).square() / (2 * _SIGMA**2))
