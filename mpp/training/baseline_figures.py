"""What a prediction reaches on a corpus without learning, measured once before a run and kept in its folder."""

import json
from dataclasses import replace

import numpy as np
import torch

from mpp.faults import reach
from mpp.model.baselines import trivial_baselines
from mpp.model.tasks import MaskedPatchesConfig
from mpp.model.vit import Vit
from mpp.shards.hashing import permutation
from mpp.stream.loader import evaluation_batches
from mpp.stream.mixture import Mixture
from mpp.training.recipe import PretrainConfig
from mpp.training.runs import Run
from mpp.training.stops import StopSignals

_IMAGES = 1000  # as many as the published figures were computed on


def note_baselines(run: Run, shards: Mixture, settings: PretrainConfig, stops: StopSignals) -> None:
    """Write ``baselines.json``: what a prediction reaches on this corpus without learning; not where asked to stop."""
    path = run.folder / "baselines.json"
    if path.exists() or not isinstance(settings.task, MaskedPatchesConfig):
        return
    subset = np.sort(permutation(shards.samples, settings.seed)[:_IMAGES])
    stream = replace(settings.stream, workers=0)  # to start workers takes longer than the images do
    batches = evaluation_batches(
        shards, settings.view, settings.vit.image_size, batch=100, subset=subset, replace=True, settings=stream
    )
    parts = []
    for batch in batches:
        reach("baselines")
        if stops.received is not None:
            return
        parts.append((batch.images[batch.ids >= 0], batch.ids[batch.ids >= 0]))
    images, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    bits = getattr(settings.task.target, "bits", 3)
    with torch.device("meta"):
        patch = Vit(settings.vit).patch
    figures = trivial_baselines(images, ids, patch, settings.task.mask, bits, seed=settings.seed)
    run.write(path.name, json.dumps(figures, indent=1) + "\n")
    print(
        "mean colours without learning: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()),
        flush=True,
    )
