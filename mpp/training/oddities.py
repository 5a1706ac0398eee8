"""What is said and written of a run's odd steps: those skipped, with a file to replay each, and losses that leap."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpp.config import dump
from mpp.disk import disk_errors
from mpp.stream.mixture import Order
from mpp.training.finite import Judged, Spikes, not_finite
from mpp.training.runs import Run


class Oddities:
    """Hears of every step of a run; ``run`` is None on all processes but the main one, which stay silent."""

    def __init__(self, run: Run | None, settings: Any, order: Order, world: int, save: Callable[[], None]) -> None:
        self._run, self._settings, self._order, self._world, self._save = run, settings, order, world, save
        self._spikes = Spikes()

    def note(self, judged: Judged, last: bool) -> None:
        """Hear of a step; where it is the ``last`` of too many that were skipped, save and raise ``NumericsError``.

        What is saved is still finite: the updates were not made.
        """
        path = None
        if not judged.finite:
            path = self._write(judged)
            self._say(f"step {judged.step} is skipped: loss {judged.loss:g}, gradient norm {judged.norm:g}; {path}")
        elif spike := self._spikes.begins(judged.loss):
            self._say(f"step {judged.step}: {spike}")
        if last:
            self._save()
            raise not_finite(judged, fix=f"mpp replay {path} shows why" if path else "")

    def _say(self, words: str) -> None:
        if self._run is not None:
            print(f"warning: {words}", file=sys.stderr, flush=True)

    def _write(self, judged: Judged) -> Path | None:
        """Write what ``mpp replay`` needs to take the step again."""
        if self._run is None:
            return None
        path = self._run.folder / f"replay-{judged.step:09d}.json"
        step = range(judged.step - 1, judged.step)
        facts = {
            "step": judged.step,
            "loss": _number(judged.loss),
            "gradient_norm": _number(judged.norm),
            "world": self._world,
            "ids": [self._order.draw(step, rank, self._world).ids.tolist() for rank in range(self._world)],
            "settings": dump(self._settings),
        }
        with disk_errors(path):
            path.write_text(json.dumps(facts, indent=1) + "\n")
        return path


def _number(value: float) -> float | str:
    """Return a number as JSON has it, which knows no infinity."""
    return value if math.isfinite(value) else str(value)
