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


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal\nfrom mpp.training.stops import StopSignals\n"
        "with StopSignals():\n    os.kill(os.getpid(), 15)\n    os.kill(os.getpid(), 15)\n    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + 15
    assert "still here" not in done.stdout
