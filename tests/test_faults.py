"""Faults on purpose happen where and when they are asked for, and nowhere else."""

import errno
import signal

import pytest
import torch

from mpp.faults import reach, wants


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPP_FAULT", raising=False)
    reach("save.begin", 3)
    assert not wants("kill", "save.begin", 3)


def test_a_fault_is_one_of_a_place_and_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPP_FAULT", "raise-disk@save.begin:3,raise-oom@step")
    for place, step in (("save.begin", 4), ("save.begin", None), ("save.begin.more", 3), ("other", 3)):
        reach(place, step)
    with pytest.raises(OSError, match="No space left") as full:
        reach("save.begin", 3)
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(torch.OutOfMemoryError):
        reach("step", 7)


def test_a_signal_is_sent_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    monkeypatch.setenv("MPP_FAULT", "term@here")
    reach("here")
    signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
