"""What must be predicted for a corrupted patch, and how wrong a prediction is: the three targets of ViT, B.1.2.

Targets are computed from the uint8 pixels that the model saw, in integers where they are classes. Not stated in
the paper, so ours: uniform bins of gamma-coded values in [0, 1], rounded down (0.125 is bin 1), and pixels scaled
to [-1, 1] for the regression.

Shapes: B images, M corrupted patches, K classes, patches of p x q pixels.
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mpp.config import config


class Judgement(NamedTuple):
    """Mean loss [] in fp32, and per patch the share [B, M] of its predictions that hit."""

    loss: Tensor
    hits_BM: Tensor


@config
class MeanColor:
    """The mean colour of a patch, a few bits a channel: 512 classes for 3 bits."""

    kind: Literal["mean_color"] = "mean_color"
    bits: int = Field(3, ge=1, le=5, description="bits per colour channel")

    def num_outputs(self, patch: tuple[int, int]) -> int:
        """Return the length of a prediction."""
        return 1 << (3 * self.bits)

    def judge(self, predictions_BMK: Tensor, patches_BM3pq: Tensor) -> Judgement:
        """Compare class scores with the colour classes of uint8 patches."""
        labels_BM = color_classes(patches_BM3pq, self.bits)
        hits = (predictions_BMK.argmax(-1) == labels_BM).float()
        return Judgement(F.cross_entropy(predictions_BMK.float().flatten(0, 1), labels_BM.flatten()), hits)

    def paint(self, predictions_BMK: Tensor, patch: tuple[int, int]) -> Tensor:
        """Return the likeliest colours as uint8 patches [B, M, 3, p, q]."""
        return class_colors(predictions_BMK.argmax(-1), self.bits)[..., None, None].expand(-1, -1, -1, *patch)


@config
class DownsizedColors:
    """The patch downsized to a small grid, a few bits a channel: 16 predictions of 512 classes."""

    kind: Literal["downsized"] = "downsized"
    bits: int = Field(3, ge=1, le=5, description="bits per colour channel")
    side: int = Field(4, ge=1, description="side of the downsized patch; it divides the patch size")

    def num_outputs(self, patch: tuple[int, int]) -> int:
        """Return the length of a prediction."""
        return self.side * self.side << (3 * self.bits)

    def judge(self, predictions_BMK: Tensor, patches_BM3pq: Tensor) -> Judgement:
        """Compare the class scores of every cell with the colour classes of uint8 patches."""
        scores = predictions_BMK.unflatten(-1, (self.side * self.side, -1))
        cells = self._cells(patches_BM3pq)
        labels = color_classes(cells, self.bits)
        hits = (scores.argmax(-1) == labels).float().mean(-1)
        return Judgement(F.cross_entropy(scores.float().flatten(0, 2), labels.flatten()), hits)

    def paint(self, predictions_BMK: Tensor, patch: tuple[int, int]) -> Tensor:
        """Return the likeliest colours as uint8 patches [B, M, 3, p, q]."""
        scores = predictions_BMK.unflatten(-1, (self.side, self.side, -1))
        colors = class_colors(scores.argmax(-1), self.bits).permute(0, 1, 4, 2, 3)
        return colors.repeat_interleave(patch[0] // self.side, 3).repeat_interleave(patch[1] // self.side, 4)

    def _cells(self, patches_BM3pq: Tensor) -> Tensor:
        """Cut patches into cells [B, M, side * side, 3, p / side, q / side]."""
        rows, columns = patches_BM3pq.shape[-2] // self.side, patches_BM3pq.shape[-1] // self.side
        cells: Tensor = patches_BM3pq.unflatten(-1, (self.side, columns)).unflatten(-3, (self.side, rows))
        return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3)


@config
class Pixels:
    """All pixels of the patch by squared error: 256 regressions of 3 channels for 16 x 16 pixels."""

    kind: Literal["pixels"] = "pixels"

    def num_outputs(self, patch: tuple[int, int]) -> int:
        """Return the length of a prediction."""
        return 3 * patch[0] * patch[1]

    def judge(self, predictions_BMK: Tensor, patches_BM3pq: Tensor) -> Judgement:
        """Compare predicted with true pixels in [-1, 1]; a hit is the right 3-bit mean colour, as in `MeanColor`."""
        painted = self.paint(predictions_BMK, (patches_BM3pq.shape[-2], patches_BM3pq.shape[-1]))
        hits = (color_classes(painted, 3) == color_classes(patches_BM3pq, 3)).float()
        return Judgement(F.mse_loss(predictions_BMK.float(), patches_BM3pq.flatten(2).float() / 127.5 - 1), hits)

    def paint(self, predictions_BMK: Tensor, patch: tuple[int, int]) -> Tensor:
        """Return the predicted pixels as uint8 patches [B, M, 3, p, q]."""
        pixels = ((predictions_BMK.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.reshape(*pixels.shape[:2], 3, *patch)


Target = Annotated[MeanColor | DownsizedColors | Pixels, Field(discriminator="kind")]


def cut_patches(images_B3HW: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images into their patches [B, N, 3, p, q], row by row, as a ViT numbers them."""
    height, width = patch
    grid: Tensor = images_B3HW.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def color_classes(patches_3pq: Tensor, bits: int) -> Tensor:
    """Return the class [...] of the mean colour of uint8 patches [..., 3, p, q]: red the high bits, blue the low.

    Exact: bin = floor(mean / 255 * 2^bits) in integers, and a mean of 255 falls into the last bin.
    """
    sums = patches_3pq.flatten(-2).sum(-1, dtype=torch.int64)
    count = patches_3pq.shape[-1] * patches_3pq.shape[-2]
    bins = ((sums << bits) // (255 * count)).clamp(max=(1 << bits) - 1)
    red, green, blue = bins.unbind(-1)
    return (red << (2 * bits)) | (green << bits) | blue


def class_colors(classes: Tensor, bits: int) -> Tensor:
    """Return the colour in the middle of each class's bins, uint8 [..., 3]."""
    last = (1 << bits) - 1
    bins = torch.stack([classes >> (2 * bits), (classes >> bits) & last, classes & last], dim=-1)
    return ((bins * 2 + 1) * 255 // (1 << (bits + 1))).to(torch.uint8)


def uniform_loss(bits: int) -> float:
    """Return the loss of a prediction that knows nothing: ln 512 for 3 bits."""
    return 3 * bits * math.log(2)
