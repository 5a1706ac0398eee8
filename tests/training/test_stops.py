"""Stop signals: remembered, undone at the end; a second one ends at once, also where Python cannot run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from accelerate import Accelerator

from mpp.training.stops import Agreement, StopSignals


def received(stops: StopSignals) -> str | None:
    """Wait for the thread to see what there is to see."""
    deadline = time.monotonic() + 20
    while stops.received is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return stops.received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_remembered_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stops:
        assert stops.received is None
        os.kill(os.getpid(), number)
        assert received(stops) == number.name
        stops.ask("another")
        assert stops.received == number.name
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("launched", [True, False])
def test_the_death_of_a_launcher_stops_the_run_and_that_of_a_shell_does_not(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    with StopSignals() as stops:
        monkeypatch.setattr("os.getppid", lambda: 1)
        if launched:
            assert received(stops) == "the launcher's end"
        else:
            time.sleep(0.6)  # two looks of the thread
            assert stops.received is None


def ended(body: str) -> "subprocess.CompletedProcess[str]":
    head = "import os, time\nfrom mpp.training import stops\nwith stops.StopSignals():\n    "
    code = f"{head}{body}\n    print('still here')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_second_signal_ends_at_once() -> None:
    done = ended("os.kill(os.getpid(), 15); os.kill(os.getpid(), 15)")
    assert done.returncode == 128 + 15
    assert "still here" not in done.stdout


def test_a_second_signal_ends_at_once_where_the_main_thread_is_stuck_outside_of_python() -> None:
    twice = (
        "import ctypes, threading\n    kill = lambda: [os.kill(os.getpid(), 15) or time.sleep(0.3) for _ in range(2)]\n"
    )
    lock = "    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
    done = ended(f"{twice}{lock}    threading.Timer(0.2, kill).start(); lock(mutex); lock(mutex)")
    assert done.returncode == 128 + 15
    assert "still here" not in done.stdout


def test_a_step_that_does_not_end_is_left_without_saving() -> None:
    late = "stops.SECONDS_TO_A_STEP = 0.3; os.kill(os.getpid(), 15); time.sleep(0.01); {}time.sleep(2)"
    done = ended(late.format(""))
    assert done.returncode == 143
    assert "stopped by SIGTERM" in done.stderr and "did not end in 0.3 s" in done.stderr


def test_a_stop_that_was_agreed_may_take_its_time_to_save() -> None:
    with StopSignals() as stops:
        stops.ask("SIGTERM")
        assert stops._deadline < float("inf")
        stops.taken_up()
        assert stops._deadline == float("inf")


def test_one_process_agrees_with_itself() -> None:
    agreement = Agreement(Accelerator(cpu=True))
    assert not agreement.reached(False)
    assert agreement.reached(True)
    agreement.close()
