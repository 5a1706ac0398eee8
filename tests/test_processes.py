"""Worker processes are deaf to stop signals from their first moment and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpp.errors import Stopped
from mpp.processes import STOP_SIGNALS, end_with_parent, stopped_by_sigterm, worker_context


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_blocks_the_stop_signals_before_it_runs_anything_of_ours() -> None:
    worker = worker_context().Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        assert all(blocked >> (number - 1) & 1 for number in STOP_SIGNALS)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS) == set()
    finally:
        worker.kill()
        worker.join()


def work_on() -> None:
    end_with_parent()
    time.sleep(60)


def main_process() -> None:
    worker = worker_context().Process(target=work_on)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as main:
        assert main.stdout is not None
        worker = int(main.stdout.readline())
        os.kill(main.pid, signal.SIGKILL)
        main.wait()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_sigterm_is_an_error_like_others_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM"), stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert signal.getsignal(signal.SIGTERM) is before


if __name__ == "__main__":
    main_process()
