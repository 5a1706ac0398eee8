"""Stop signals: remembered, agreed over processes, undone at the end; a second one ends at once."""

import os
import signal
import subprocess
import sys

import pytest
from accelerate import Accelerator

from mpp.training.stops import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_remembered_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    accelerator = Accelerator()
    with StopSignals() as stops:
        assert not stops.agreed(accelerator)
        os.kill(os.getpid(), number)
        assert stops.agreed(accelerator)
        assert stops.received == number.name
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("launched", [True, False])
def test_the_death_of_a_launcher_stops_the_run_and_that_of_a_shell_does_not(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    accelerator = Accelerator()
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    with StopSignals() as stops:
        monkeypatch.setattr("os.getppid", lambda: 1)
        assert stops.agreed(accelerator) == launched


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal\nfrom mpp.training.stops import StopSignals\n"
        "with StopSignals():\n    os.kill(os.getpid(), 15)\n    os.kill(os.getpid(), 15)\n    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + 15
    assert "still here" not in done.stdout
