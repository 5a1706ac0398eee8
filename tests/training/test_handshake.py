"""Two processes meet, or it is said in time that they do not, and why."""

import time

import pytest

from mpp.errors import HangError
from mpp.training.handshake import handshake


@pytest.mark.slow
def test_two_processes_meet() -> None:
    assert 0 < handshake("gloo", 120) < 120


@pytest.mark.slow
def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    with pytest.raises(HangError, match=r"nowhere0[\s\S]*GLOO_SOCKET_IFNAME"):
        handshake("gloo", 120)


def test_who_does_not_answer_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter()
    with pytest.raises(HangError, match=r"within 0\.2 s"):
        handshake("gloo", 0.2)
    assert time.perf_counter() - began < 60
