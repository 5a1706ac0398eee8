"""Experiment trackers of Accelerate (tensorboard, wandb, mlflow ...), which never hold up or end the training.

Each tracker is served by a thread of its own through a bounded queue: one that hangs costs its entries, not a step.
One that fails is warned about once, with its reason, and tried again after a pause; what it missed is counted and
stands in metrics.jsonl, which is always complete.
"""

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from mpp.errors import ConfigError
from mpp.redaction import redact
from mpp.training.progress import say

WAITING = 64  # entries that a tracker may be behind
PAUSE = 60.0  # seconds until a tracker that failed is tried again; doubled each time, up to an hour
LEAVE = 5.0  # seconds that the end of a run waits for its trackers
FOLDER = "trackers"  # in the run folder: what trackers write, and NAME.id, by which each knows the run
_PROJECT = "mpp"  # where the environment names none (WANDB_PROJECT, TRACKIO_PROJECT ...)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Call = Callable[[GeneralTracker], None]


def tracker_names(setting: str | Sequence[str] | None) -> Sequence[str]:
    """Return the trackers that a setting names."""
    return (setting,) if isinstance(setting, str) else setting or ()


def check_trackers(setting: str | Sequence[str] | None) -> None:
    """Raise ``ConfigError`` for a tracker that Accelerate does not know or that is not installed."""
    known = sorted(LOGGER_TYPE_TO_CLASS)
    for name in tracker_names(setting):
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            fix = f"tracker={near[0]}" if near else f"one of {', '.join(known)}"
            raise ConfigError(f"tracker: Accelerate knows no {name!r}", fix=fix)
        if name in LoggerType.list() and LoggerType(name) not in get_available_trackers():
            raise ConfigError(f"tracker {name} is not installed", fix=f"pip install {name.replace('_', '-')}")


class Trackers:
    """The trackers of a run: hand them values and pictures, and close them. All of it returns at once."""

    def __init__(self, names: Sequence[str], run: Path, settings: Mapping[str, Any], *, start: int) -> None:
        """Open trackers for the run in the folder ``run`` that begins, or goes on, after ``start`` steps."""
        parameters = flat(settings)
        self._served = [_Served(name, run, parameters, start) for name in dict.fromkeys(names)]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of one step."""
        for served in self._served:
            served.hand(lambda tracker: tracker.log(dict(values), step=step))

    @property
    def take_pictures(self) -> bool:
        """Whether a picture would be shown anywhere."""
        return any(served.takes_pictures for served in self._served)

    def picture(self, name: str, pixels_HWC: Pixels, step: int) -> None:
        """Log a picture, uint8 [H, W, 3], to the trackers that take pictures."""
        for served in self._served:
            if served.takes_pictures:
                served.hand(lambda tracker: _log_picture(tracker, name, pixels_HWC, step))

    def close(self) -> None:
        """Let the trackers finish, for ``LEAVE`` seconds in all, and say what they missed."""
        until = time.monotonic() + LEAVE
        for served in self._served:
            served.hand_last(until)
        for served in self._served:
            served.leave(until)


class _Served:
    """One tracker and the thread that talks to it."""

    def __init__(self, name: str, run: Path, parameters: Mapping[str, Any], start: int) -> None:
        self.takes_pictures = hasattr(LOGGER_TYPE_TO_CLASS[name], "log_images")
        self._name, self._run, self._parameters, self._start = name, run, parameters, start
        self._calls: queue.Queue[Call | None] = queue.Queue(WAITING)
        self._given = self._taken = 0
        self._tracker: GeneralTracker | None = None
        self._warned, self._pause, self._asleep_until = False, PAUSE, 0.0
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def hand(self, call: Call) -> None:
        """Queue a call; a full queue drops it."""
        self._given += 1
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"is {WAITING} entries behind")

    def hand_last(self, until: float) -> None:
        """Say that no call follows, if there is room to before the time ``until``."""
        with suppress(queue.Full):
            self._calls.put(None, timeout=max(0.0, until - time.monotonic()))

    def leave(self, until: float) -> None:
        """Wait for the last call, up to the time ``until``, and say what the tracker missed, if anything."""
        self._thread.join(max(0.0, until - time.monotonic()))
        missed = self._given - self._taken
        if missed:
            say(f"warning: tracker {self._name} missed {missed} of {self._given} entries; metrics.jsonl has them all")

    def _work(self) -> None:
        self._serve(lambda tracker: None)  # opens it
        while (call := self._calls.get()) is not None:
            self._taken += self._serve(call)
        if self._tracker is not None:
            self._serve(lambda tracker: tracker.finish())

    def _serve(self, call: Call) -> bool:
        """Call the tracker, opened where it is not; return whether it took the call."""
        if time.monotonic() < self._asleep_until:
            return False
        try:
            if self._tracker is None:
                self._tracker = self._open()
            call(self._tracker)
        except Exception as error:  # whatever a tracker raises is its own affair
            self._warn(f"failed: {type(error).__name__}: {redact(' '.join(str(error).split()))[:300]}")
            self._asleep_until = time.monotonic() + self._pause
            self._pause = min(3600.0, 2 * self._pause)
            return False
        return True

    def _open(self) -> GeneralTracker:
        """Open the tracker, on the same entry as before where the run goes on; tell it the settings once."""
        cls, home = LOGGER_TYPE_TO_CLASS[self._name], self._run / FOLDER
        file = home / f"{self._name}.id"
        known = (file.exists() and file.read_text()) or None
        home.mkdir(exist_ok=True)
        place = [str(home)] if cls.requires_logging_directory else []
        identity = known or uuid.uuid4().hex
        title = (
            self._name if cls.requires_logging_directory else os.environ.get(f"{self._name.upper()}_PROJECT", _PROJECT)
        )
        tracker: GeneralTracker = cls(
            title, *place, **_options(self._name, self._run, identity, known is not None, self._start)
        )
        tracker.start()
        if known is None:
            file.write_text(_GIVEN_ID.get(self._name, lambda tracker: identity)(tracker))
            tracker.store_init_configuration(dict(self._parameters))
        return tracker

    def _warn(self, what: str) -> None:
        if not self._warned:
            say(f"warning: tracker {self._name} {what}; the training goes on, metrics.jsonl is complete")
        self._warned = True


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested settings under dotted keys; what is no number or text is written as JSON."""
    values: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return values


# Trackers whose server, or library, names the entry; to the others we give a name of ours.
_GIVEN_ID: dict[str, Callable[[GeneralTracker], str]] = {
    "aim": lambda tracker: str(tracker.tracker.hash),
    "clearml": lambda tracker: str(tracker.tracker.id),
    "mlflow": lambda tracker: str(tracker.tracker.info.run_id),
}


def _options(name: str, run: Path, identity: str, again: bool, start: int) -> dict[str, Any]:
    """Return what a tracker needs to show this run under its own name and, ``again``, to go on with it."""
    title, home = run.resolve().name, str(run / FOLDER)
    if name == "tensorboard":
        return {"purge_step": start + 1} if start else {}
    options: dict[str, dict[str, Any]] = {
        "aim": {"run_hash": identity} if again else {},
        "clearml": {"task_name": title, "auto_connect_frameworks": False}
        | ({"continue_last_task": identity} if again else {}),
        "comet_ml": {"experiment_key": identity},
        "dvclive": {"dir": f"{home}/dvclive", "resume": again, "save_dvc_exp": False},
        "mlflow": {"run_name": title} | ({"run_id": identity} if again else {}),
        "swanlab": {"experiment_name": title, "logdir": f"{home}/swanlab", "id": identity[:21], "resume": "allow"},
        "trackio": {"name": f"{title}-{identity[:8]}", "resume": "allow"},
        "wandb": {"name": title, "dir": home, "id": identity, "resume": "allow"},
    }
    return options.get(name, {})


def _log_picture(tracker: GeneralTracker, name: str, pixels_HWC: Pixels, step: int) -> None:
    """Hand a picture over in the form that Accelerate's class for the tracker passes on."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: pixels_HWC[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "aim":
        tracker.log_images({name: Image.fromarray(pixels_HWC)}, step=step)
    elif tracker.name == "clearml":
        tracker.log_images({name: pixels_HWC}, step=step)
    else:
        tracker.log_images({name: [pixels_HWC]}, step=step)
