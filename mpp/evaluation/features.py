"""Features of a whole split under a frozen backbone, every example once over all processes.

Shapes: N samples of the split, D width.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console

from mpp.errors import NumericsError
from mpp.evaluation.frozen import FrozenBackbone
from mpp.shards.progress import shown
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import PADDING
from mpp.stream.device import OnDevice
from mpp.stream.loader import StreamConfig, evaluation_batches
from mpp.stream.order import Ints

Rows = tuple[dict[str, NDArray[np.float32]], Ints, Ints]


@dataclass(frozen=True)
class Features:
    """Features by kind, fp32 [N, D], with labels and sample ids int64 [N], in ascending order of the ids."""

    by_kind: dict[str, NDArray[np.float32]]
    labels: Ints
    ids: Ints


def extract(
    frozen: FrozenBackbone,
    shards: ShardSet,
    accelerator: Accelerator,
    *,
    batch: int,
    stream: StreamConfig,
    subset: Ints | None = None,
    check: Callable[[], None] | None = None,
) -> Features:
    """Return the features of the evaluation views of a labelled split, or of a ``subset`` of its ids, in every process.

    The network computes in fp32 whatever trains it: a probe's solution feels the third digit of its features.
    ``check``, called after every batch, by all processes equally often, may end it by raising; then nothing is shown.
    Raises ``DataError`` for a sample that cannot be used, ``NumericsError`` for features that are not finite.
    """
    rows: Iterator[Rows] = _rows(frozen, shards, accelerator, batch, stream, subset)
    if check is not None:
        rows = _checked(rows, check)
    elif accelerator.is_main_process:
        console = Console(file=sys.stderr)
        title = f"features of {shards.split}"
        rows = shown(rows, lambda found: len(found[2]), total=shards.samples, title=title, console=console)
    parts = list(rows)
    ids = np.concatenate([part[2] for part in parts])
    order = np.argsort(ids)
    by_kind = {kind: np.concatenate([part[0][kind] for part in parts])[order] for kind in parts[0][0]}
    if not all(np.isfinite(values).all() for values in by_kind.values()):
        raise NumericsError(f"features of {shards.split} under {frozen.origin} are not finite", fix="other weights")
    return Features(by_kind, np.concatenate([part[1] for part in parts])[order], ids[order])


def _checked(rows: Iterator[Rows], check: Callable[[], None]) -> Iterator[Rows]:
    for some in rows:
        yield some
        check()


@torch.no_grad()
def _rows(
    frozen: FrozenBackbone,
    shards: ShardSet,
    accelerator: Accelerator,
    batch: int,
    stream: StreamConfig,
    subset: Ints | None,
) -> Iterator[Rows]:
    """Yield features, labels and ids of the batches of all processes together, without padding."""
    network = frozen.network.to(accelerator.device)
    batches = evaluation_batches(
        shards,
        frozen.view,
        frozen.image_size,
        batch=batch,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        subset=subset,
        settings=stream,
    )
    for images, labels, ids, _ in OnDevice(batches, accelerator.device):
        assert labels is not None
        features = {kind: values.float() for kind, values in network(images).items()}
        features, labels, ids = accelerator.gather((features, labels, ids))
        real = ids != PADDING
        yield (
            {kind: values[real].cpu().numpy() for kind, values in features.items()},
            labels[real].cpu().numpy(),
            ids[real].cpu().numpy(),
        )
