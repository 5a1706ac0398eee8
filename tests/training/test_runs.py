"""Run folders: refused with other settings or while in use, metrics rewound to where a run continues."""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DiskError
from mpp.training.runs import Run, read_metrics, settings_hash


@config
class Stream:
    """Settings that do not change what is computed."""

    workers: int = 1


@config
class Schedule:
    """Settings below one name."""

    kind: str = "cosine"
    warmup: int = 1


@config
class Settings:
    """Settings of a pretend run."""

    rate: float = 0.1
    steps: int = 5
    stream: Stream = Stream()
    schedule: Schedule = Schedule()
    api_key: str = ""
    allow_changed: tuple[str, ...] = ()


def test_a_run_is_continued_with_the_same_settings_only(tmp_path: Path) -> None:
    Run(tmp_path, Settings()).close("stopped")
    Run(tmp_path, Settings(stream=Stream(workers=5))).close("stopped")  # does not change what is computed
    assert "workers: 1" in (tmp_path / "config.yaml").read_text()  # what the run began with
    with pytest.raises(ConfigError, match=r"rate: was 0\.1, now 0\.2"):
        Run(tmp_path, Settings(rate=0.2))


@config
class Comparison:
    """Settings of a pretend comparison, which holds the settings of runs."""

    variants: dict[str, Any] = Field({})
    pretrain: Settings = Settings()


def test_what_is_free_in_a_run_is_free_within_a_comparison_and_names_of_arms_are_not(tmp_path: Path) -> None:
    Run(tmp_path, Comparison(variants={"probe": {"ratio": 0.5}})).close("stopped")
    Run(tmp_path, Comparison(variants={"probe": {"ratio": 0.5}}, pretrain=Settings(stream=Stream(workers=5)))).close("")
    with pytest.raises(ConfigError, match=r"variants\.probe\.ratio: was 0\.5, now 0\.7") as caught:
        Run(tmp_path, Comparison(variants={"probe": {"ratio": 0.7}}))
    assert "allow_changed" not in str(caught.value)


def test_all_that_differs_is_listed_with_what_was_and_is(tmp_path: Path) -> None:
    Run(tmp_path, Settings()).close("stopped")
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path, Settings(rate=0.2, schedule=Schedule(warmup=2)))
    for line in ("rate: was 0.1, now 0.2", "schedule.warmup: was 1, now 2", "allow_changed=[rate, schedule.warmup]"):
        assert line in str(caught.value)


def test_what_is_allowed_may_change_and_the_old_settings_are_kept(tmp_path: Path) -> None:
    Run(tmp_path, Settings()).close("finished")
    begun_with = (tmp_path / "config.yaml").read_text()
    longer = Settings(steps=9, schedule=Schedule(warmup=2))
    with pytest.raises(ConfigError, match=r"schedule\.warmup: was 1, now 2") as caught:
        Run(tmp_path, longer, ["steps"])
    assert "steps:" not in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == begun_with
    run = Run(tmp_path, longer, ["steps", "schedule"])
    assert not run.finished, "there are steps to take"
    run.close("finished")
    assert (tmp_path / "config.yaml.1").read_text() == begun_with
    run = Run(tmp_path, longer)  # from now on these are the settings
    assert run.finished
    run.close("finished")
    Run(tmp_path, Settings(steps=10, schedule=Schedule(warmup=2)), ["steps"]).close("stopped")
    assert "steps: 9" in (tmp_path / "config.yaml.2").read_text()
    assert "steps: 10" in (tmp_path / "config.yaml").read_text()


def test_a_name_that_may_change_must_be_one(tmp_path: Path) -> None:
    for wrong, hint in (("stpes", "did you mean steps"), ("schedule.wramup", "did you mean schedule.warmup")):
        with pytest.raises(ConfigError, match=hint):
            Run(tmp_path, Settings(), [wrong])
    Run(tmp_path, Settings()).close("the lock is free")


def test_secrets_are_not_written_and_do_not_count_as_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sesame = "open-sesame-123"
    Run(tmp_path, Settings(api_key=sesame)).close("stopped")
    Run(tmp_path, Settings(api_key="another")).close("stopped")
    assert settings_hash(Settings(api_key=sesame)) == settings_hash(Settings(api_key="another"))
    assert settings_hash(Settings(steps=6)) != settings_hash(Settings())
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path, Settings(api_key=sesame, steps=6))
    assert sesame not in "".join([str(caught.value), *(path.read_text() for path in tmp_path.iterdir())])


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            held = Run(tmp_path, Settings())
            os.write(writing, b"locked" if held.folder == tmp_path else b"")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 6) == b"locked"
    with pytest.raises(ConfigError, match="another process"):
        Run(tmp_path, Settings())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Run(tmp_path, Settings()).close("stopped")
    os.close(reading)
    os.close(writing)


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


def test_lines_that_a_full_disk_does_not_take_are_written_when_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, Settings())
    run.record("metrics", {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        run.record("metrics", {"step": 2})
        run.record("metrics", {"step": 3})
        with pytest.raises(DiskError):
            run.finish_lines()
        with pytest.raises(DiskError, match=r"cannot write"):
            run.write("baselines.json", "x" * 100)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert capsys.readouterr().out.count("warning: ") == 1
    run.record("metrics", {"step": 4})
    run.finish_lines()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert not list(tmp_path.glob("baselines*")), "nothing half written is left"
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


def test_what_was_measured_joins_the_versions(tmp_path: Path) -> None:
    run = Run(tmp_path, Settings())
    run.note_environment({"matrix_tflops": 0.1})
    run.close("finished")
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["matrix_tflops"] == 0.1 and "torch" in found["packages"]
