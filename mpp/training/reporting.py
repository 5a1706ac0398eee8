"""What a run tells while it lasts: lines on the disk, values and pictures for its trackers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from mpp.model.reconstruction import picture_grid
from mpp.model.tasks import MaskedPatches
from mpp.stream.device import to_device
from mpp.stream.loader import StreamConfig, evaluation_batches
from mpp.stream.mixture import Mixture
from mpp.stream.views import ViewConfig
from mpp.training.devices import divides_weights
from mpp.training.progress import say
from mpp.training.runs import Run
from mpp.training.trackers import Pixels, Trackers, tracker_names

_SHOWN = 8  # images in a picture, spread over the shards

Painter = Callable[[], Pixels]


class Reporter:
    """Reports the log steps of a run. Of several processes the main one alone has a reporter."""

    def __init__(self, run: Run, trackers: Trackers, painter: Painter | None, *, every: int, start: int) -> None:
        """Begin after ``start`` steps; show what ``painter`` paints at the first log step of every ``every`` steps."""
        self._run, self._trackers, self._painter = run, trackers, painter
        self._every, self._painted = every, start // every

    def log(self, step: int, images_seen: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Record a log step, and paint a picture where one is due."""
        self.record(step, images_seen, values, timing)
        if self._painter is not None and step // self._every > self._painted:
            self._painted = step // self._every
            self._trackers.picture("reconstructions", self._painter(), step)

    def record(self, step: int, images_seen: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Record the values, a function of the settings, and the timing of a step."""
        self._run.record("metrics", {"step": step, "images_seen": images_seen, **values})
        self._run.record("timing", {"step": step, **timing})
        self._trackers.log({**values, **timing}, step)

    def close(self) -> None:
        """Let the trackers finish."""
        self._trackers.close()


@contextmanager
def open_reporter(
    run: Run | None,
    trackers: str | Sequence[str] | None,
    settings: Mapping[str, Any],
    derived: Mapping[str, float],
    *,
    start: int,
    every: int,
    painter: Callable[[], Painter | None],
) -> Iterator[Reporter | None]:
    """Give the process that has the run a reporter of what follows ``start`` steps, None to the others.

    Trackers are told the settings and what is ``derived`` from them, which is in none of them and goes into
    ``derived.json``. ``painter`` is asked for only where a tracker shows pictures.
    """
    if run is None:
        yield None
        return
    run.write("derived.json", json.dumps(derived, indent=1) + "\n")
    say("derived: " + ", ".join(f"{name} {value:.6g}" for name, value in derived.items()))
    opened = Trackers(tracker_names(trackers), run.folder, {**settings, "derived": derived}, start=start)
    reporter = Reporter(run, opened, painter() if opened.take_pictures else None, every=every, start=start)
    with closing(reporter):
        yield reporter


def reconstruction_painter(
    task: nn.Module, shards: Mixture, views: ViewConfig, stream: StreamConfig, accelerator: Accelerator
) -> Painter | None:
    """Return what paints a few images of the shards as the task sees and predicts them, None for another task.

    None also where weights are divided over processes: one alone would wait for the others' shares.
    """
    if not isinstance(task, MaskedPatches) or divides_weights(accelerator):
        return None
    size = task.vit.settings.image_size
    subset = np.linspace(0, shards.samples - 1, min(_SHOWN, shards.samples), dtype=np.int64)
    settings = replace(stream, workers=0)
    batches = evaluation_batches(shards, views, size, batch=len(subset), subset=subset, replace=True, settings=settings)
    batch = next(batches)
    # A copy: the images are in memory of the loader.
    kept = to_device(batch._replace(images=batch.images.clone()), accelerator.device)
    return lambda: picture_grid(task, kept).numpy()
