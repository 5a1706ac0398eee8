"""Run folders: refused with other settings or while in use, metrics rewound to where a run continues."""

import json
from pathlib import Path

import pytest

from mpp.config import config
from mpp.errors import ConfigError, DiskError
from mpp.training.runs import Run, read_metrics


@config
class Stream:
    """Settings that do not change what is computed."""

    workers: int = 1


@config
class Settings:
    """Settings of a pretend run."""

    rate: float = 0.1
    stream: Stream = Stream()


def test_a_run_is_continued_with_the_same_settings_only(tmp_path: Path) -> None:
    Run(tmp_path, Settings()).close("stopped")
    Run(tmp_path, Settings(stream=Stream(workers=5))).close("stopped")  # does not change what is computed
    assert "workers: 1" in (tmp_path / "config.yaml").read_text()  # what the run began with
    with pytest.raises(ConfigError, match=r"rate: was 0\.1, now 0\.2"):
        Run(tmp_path, Settings(rate=0.2))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first = Run(tmp_path, Settings())
    with pytest.raises(ConfigError, match="another process"):
        Run(tmp_path, Settings())
    first.close("finished")
    second = Run(tmp_path, Settings())
    assert second.finished
    second.close("finished")


def test_metrics_after_the_step_and_half_lines_are_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path, Settings())
    for step in (10, 20, 30):
        run.record("metrics", {"step": step, "loss": 0.1 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    run.rewind(20)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [10, 20]
    run.close("finished")


def test_the_folder_says_what_ran(tmp_path: Path) -> None:
    run = Run(tmp_path, Settings())
    assert (tmp_path / "STATUS").read_text() == "running\n"
    assert "torch" in json.loads((tmp_path / "environment.json").read_text())["packages"]
    assert "rate: 0.1" in (tmp_path / "config.yaml").read_text()
    run.close("finished")


def test_a_run_is_not_written_among_shards(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds shards"):
        Run(tmp_path, Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="run folder"):
        Run(tmp_path / "file" / "run", Settings())
