"""Trackers: told all, on the same entry after a resume; one that fails or hangs costs its own entries."""

import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers, register_tracker_class
from accelerate.utils import LoggerType

from mpp.errors import ConfigError
from mpp.training import trackers
from mpp.training.trackers import Trackers, check_trackers, flat

SETTINGS = {"steps": 3, "optimizer": {"kind": "adamw", "betas": [0.9, 0.999]}, "ema": None}
PIXELS = np.zeros((4, 6, 3), np.uint8)


class Notebook(GeneralTracker):
    """A tracker that keeps all it hears; tests make it fail or hang."""

    name = "notebook"
    requires_logging_directory = False
    heard: ClassVar[list[tuple[str, Any, int | None]]] = []
    fail_at: ClassVar[Callable[[str, int | None], bool]]
    hold: ClassVar[threading.Event]

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self._hear("open", run_name, None)

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._hear("settings", values, None)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._hear("values", values, step)

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._hear("images", values, step)

    def finish(self) -> None:
        self._hear("finish", None, None)

    def _hear(self, what: str, values: Any, step: int | None) -> None:
        type(self).hold.wait()
        if type(self).fail_at(what, step):
            raise ConnectionError(f"no\nserver for {what}")
        self.heard.append((what, values, step))


@pytest.fixture
def notebook() -> Iterator[type[Notebook]]:
    """Register a tracker that works, to begin with."""
    Notebook.heard.clear()
    Notebook.fail_at = lambda what, step: False
    Notebook.hold = threading.Event()
    Notebook.hold.set()
    register_tracker_class(Notebook)
    yield Notebook
    Notebook.hold.set()
    del LOGGER_TYPE_TO_CLASS["notebook"]


def steps_heard() -> list[int | None]:
    return [step for what, _, step in Notebook.heard if what == "values"]


def test_a_tracker_is_told_settings_values_and_pictures_in_order(notebook: type[Notebook], tmp_path: Path) -> None:
    told = Trackers(["notebook", "notebook"], tmp_path, SETTINGS, start=0)
    assert told.take_pictures
    told.log({"loss": 2.0}, 1)
    told.picture("reconstructions", PIXELS, 1)
    told.log({"loss": 1.0}, 2)
    told.close()
    assert [what for what, *_ in notebook.heard] == ["open", "settings", "values", "images", "values", "finish"]
    assert notebook.heard[1][1] == {
        "steps": 3, "optimizer.kind": "adamw", "optimizer.betas": "[0.9, 0.999]", "ema": "null",
    }  # fmt: skip
    assert notebook.heard[2][1:] == ({"loss": 2.0}, 1)
    assert notebook.heard[3][1]["reconstructions"][0] is PIXELS


def test_the_settings_are_told_once_in_the_life_of_a_run(notebook: type[Notebook], tmp_path: Path) -> None:
    for start in (0, 5):
        Trackers(["notebook"], tmp_path, SETTINGS, start=start).close()
    assert [what for what, *_ in notebook.heard].count("settings") == 1


def test_a_tracker_that_fails_is_warned_about_once_and_counted(
    notebook: type[Notebook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook.fail_at = lambda what, step: step == 2
    told = Trackers(["notebook"], tmp_path, SETTINGS, start=0)
    for step in range(1, 6):
        told.log({"loss": 0.0}, step)
    told.close()
    assert steps_heard() == [1]
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert "notebook failed: ConnectionError: no server for values; the training goes on" in shown[0]
    assert "missed 4 of 5 entries" in shown[1]


@pytest.mark.parametrize("what", ["open", "settings"])
def test_a_tracker_that_does_not_open_is_tried_again_after_a_pause(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(trackers, "PAUSE", 0.01)
    failures = iter([True, True])
    notebook.fail_at = lambda call, step: call == what and next(failures, False)
    told = Trackers(["notebook"], tmp_path, SETTINGS, start=0)
    deadline = time.monotonic() + 60
    step = 0
    while not steps_heard() and time.monotonic() < deadline:
        time.sleep(0.005)
        told.log({"loss": 0.0}, step := step + 1)
    told.close()
    assert 1 < steps_heard()[0] <= step  # type: ignore[operator]


def test_a_tracker_that_hangs_holds_nobody_up(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "LEAVE", 0.2)
    notebook.hold.clear()
    told = Trackers(["notebook"], tmp_path, SETTINGS, start=0)
    for step in range(trackers.WAITING + 30):  # would never return if one of them waited
        told.log({"loss": 0.0}, step)
    told.close()
    shown = capsys.readouterr().out
    assert shown.count("64 entries behind") == 1
    assert "missed 94 of 94 entries" in shown
    assert notebook.heard == []


def test_a_tracker_that_hangs_does_not_hold_up_another(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Notebook):
        name = "other"
        heard: ClassVar[list[tuple[str, Any, int | None]]] = []
        hold = threading.Event()

    Other.hold.set()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "other", Other)
    monkeypatch.setattr(trackers, "LEAVE", 0.5)
    notebook.hold.clear()
    told = Trackers(["notebook", "other"], tmp_path, SETTINGS, start=0)
    told.log({"loss": 0.0}, 1)
    told.close()
    assert [what for what, *_ in Other.heard] == ["open", "settings", "values", "finish"]


def test_unknown_and_missing_trackers_are_refused(notebook: type[Notebook]) -> None:
    check_trackers([])
    check_trackers(["notebook"])
    with pytest.raises(ConfigError, match=r"(?s)knows no 'tensorbord'.*tracker=tensorboard"):
        check_trackers(["tensorbord"])
    missing = next(name for name in ("comet_ml", "aim", "clearml") if LoggerType(name) not in get_available_trackers())
    with pytest.raises(ConfigError, match=f"(?s)not installed.*pip install {missing.replace('_', '-')}"):
        check_trackers(["notebook", missing])


def test_settings_are_flat_numbers_and_texts() -> None:
    tree = {"a": 1, "b": {"c": 0.5, "d": {"e": True}}, "f": [1, {"g": None}], "h": "text"}
    assert flat(tree) == {"a": 1, "b.c": 0.5, "b.d.e": True, "f": '[1, {"g": null}]', "h": "text"}


def tensorboard_events(folder: Path) -> Any:
    """Return what tensorboard's own reader sees in a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_shows_one_run_after_a_resume_from_an_earlier_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install tensorboard")
    for start, loss in ((0, 1.0), (2, 2.0)):
        told = Trackers(["tensorboard"], tmp_path, SETTINGS, start=start)
        for step in range(start + 1, 5):
            told.log({"loss": loss}, step)
        told.picture("reconstructions", PIXELS, 4)
        told.close()
    events = tensorboard_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [(image.width, image.height) for image in events.Images("reconstructions")] == [(6, 4)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's own thread
def test_tensorboard_on_a_full_disk_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install tensorboard")
    limits, others = resource.getrlimit(resource.RLIMIT_FSIZE), set(threading.enumerate())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        told = Trackers(["tensorboard"], tmp_path, SETTINGS, start=0)
        for step in range(60):
            told.log({"loss": 0.0, "accuracy": 0.0, "learning_rate": 0.0}, step)
        told.close()
        for thread in set(threading.enumerate()) - others:  # tensorboard's die of it, in this test and in no other
            thread.join(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    shown = capsys.readouterr().out
    assert shown.count("tracker tensorboard failed: OSError: [Errno 27] File too large") == 1
    assert re.search(r"missed \d+ of 60 entries", shown)


def test_a_tracker_without_a_folder_is_warned_about(
    notebook: type[Notebook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trackers").write_text("a file in its place")
    told = Trackers(["notebook"], tmp_path, SETTINGS, start=0)
    told.close()
    assert "tracker notebook failed: FileExistsError" in capsys.readouterr().out
