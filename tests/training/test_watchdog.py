"""The clock over steps: what it waits for, what stops it, and what it says at the end."""

import subprocess
import sys

import pytest

CODE = """
import time
from mpp.config import resolve
from mpp.training.peers import Peers
from mpp.training.stops import StopSignals
from mpp.training.watchdog import Timeouts, Watchdog

peers = Peers(0, 1, StopSignals(), print)
peers.world = 2  # with one process there is nothing to wait for
peers.others_busy, peers.silent = lambda: {busy}, lambda seconds: {silent} if seconds <= 0.5 else []
limits = resolve(Timeouts, dict(first_step={first}, step=0.5, pause={pause}))
clock = Watchdog(peers, limits, lambda step: "samples [7]")
{body}
print("still here")
"""


def watched(body: str, **changes: object) -> "subprocess.CompletedProcess[str]":
    given = {"busy": False, "silent": [], "first": 60, "pause": 60, **changes}
    return subprocess.run(
        [sys.executable, "-c", CODE.format(body=body, **given)], capture_output=True, text=True, timeout=240
    )


def test_a_step_that_does_not_go_on_ends_with_stacks_rank_step_and_samples() -> None:
    done = watched("clock.step(4); clock.step(5); time.sleep(120)")
    assert done.returncode == 6
    assert "process 0 of 2 at step 6, samples [7]: a step did not go on within 0.5 s" in done.stderr
    assert "stacks of process 0" in done.stderr and 'File "<string>"' in done.stderr
    assert "still here" not in done.stdout


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ("clock.step(4); time.sleep(1.5)", {}),  # the first step has a limit of its own
        ("clock.step(4); clock.step(5); time.sleep(1.5)", {"busy": True}),  # another one's save
        ("clock.step(4); clock.step(5); clock.pause('the data', 60); time.sleep(1.5)", {}),
        ("clock.step(4); clock.step(5)\nwith clock.paused('a save'): time.sleep(1.5)", {}),
        ("clock.step(4); clock.step(5); clock.close(); time.sleep(1.5)", {}),
    ],
)
def test_what_has_another_limit_is_not_ended(body: str, changes: dict[str, object]) -> None:
    done = watched(body, **changes)
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_a_pause_has_an_end_too() -> None:
    done = watched("time.sleep(120)", pause=0.5)
    assert done.returncode == 6
    assert "process 0 of 2: opening the data did not go on within 0.5 s" in done.stderr


def test_one_that_gives_no_sign_of_life_ends_the_others_also_in_a_pause() -> None:
    done = watched("clock.step(4); clock.step(5); clock.pause('a save', 60); time.sleep(120)", silent=["process 1"])
    assert done.returncode == 6
    assert "no sign of life for 0.5 s from process 1" in done.stderr
