"""Progress: plain lines where nobody watches a terminal, a bar where somebody does, silence on other processes."""

import io
import os
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mpp.stream.stall import Cost, StallClock
from mpp.training.progress import Clock, StepProgress, say, shown_timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stub of the clock, at 100 seconds; ``clock.now`` sets it."""
    stub = SimpleNamespace(now=100.0)
    monkeypatch.setattr("mpp.training.progress.time", SimpleNamespace(perf_counter=lambda: stub.now))
    return stub


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_off_a_terminal_a_line_holds_step_values_and_time_left(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with StepProgress("pretrain", start=10, steps=40) as progress:
        clock.now += 130  # 10 steps of 13 s; 20 are left
        progress.show(20, {"loss": 6.23832, "accuracy": 0.125})
    assert capsys.readouterr().out == "pretrain 20/40  loss 6.238  accuracy 0.125  left 4:20\n"


def test_at_the_end_no_time_is_left(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress("finetune", start=0, steps=5) as progress:
        clock.now += 3
        progress.show(5, {})
    assert capsys.readouterr().out.endswith("5/5    left 0:00\n")


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress("pretrain", start=0, steps=5, shown=False) as progress:
        progress.show(5, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_on_stderr_shows_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with StepProgress("pretrain", start=0, steps=5) as progress:
        progress.show(4, {"loss": 1.5})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "pretrain" in shown.err and "4/5" in shown.err and "loss 1.5" in shown.err


def test_the_clock_counts_from_its_start_and_from_lap_to_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = SimpleNamespace(now=0.0)
    monkeypatch.setattr("mpp.training.progress.time", SimpleNamespace(perf_counter=lambda: stub.now))
    stall = StallClock()
    clock = Clock(100, stall, limit=1000.0)
    stub.now = 50.0  # what came before the first step does not count
    stall.add(3.0, 0, Cost(100))
    clock.start(20)
    stub.now = 52.0
    stall.add(0.5, 2, Cost(100))
    rates, _ = clock.lap(25)
    assert rates["images_per_second"] == 250 and rates["seconds_per_step"] == 0.4 and rates["utilisation"] == 0.25
    assert rates["data_wait_seconds"] == 0.5 and rates["data_wait_share"] == 0.25
    stub.now = 53.0
    rates, _ = clock.lap(35)
    assert rates["images_per_second"] == 1000 and rates["data_wait_seconds"] == 0


def test_a_line_shows_the_worst_wait_and_no_more_trouble_than_there_is() -> None:
    rates = {"images_per_second": 9.0, "utilisation": 0.3}
    timing = {**rates, "data_wait_share": 0.1, "retries": 0, "skipped": 0, "cache_hits": 3}
    assert shown_timing(timing) == {**rates, "data_wait_share": 0.1}
    timing |= {"data_wait_share_max": 0.4, "skipped": 2}
    assert shown_timing(timing) == {**rates, "data_wait_share": 0.4, "skipped": 2}


def test_a_log_on_a_full_disk_loses_its_lines_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    full = io.TextIOWrapper(raw, write_through=True)
    monkeypatch.setattr("sys.stdout", full)
    with pytest.raises(OSError, match="No space left"):
        print("a line", flush=True)
    with StepProgress("pretrain", start=0, steps=2) as progress:
        progress.show(1, {"loss": 1.0})
    monkeypatch.undo()
    with suppress(OSError):
        full.close()


def test_a_reader_who_left_is_still_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(BrokenPipeError):
            say("a line")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())
