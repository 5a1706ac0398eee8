"""Processes that hear of each other: here each is a thread with sockets of its own."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mpp.training.peers import Peers
from mpp.training.stops import StopSignals

Open = Callable[[int], list[Peers]]


def happens(what: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(what())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return a function that opens the lines of so many processes; their stop signals are never caught here."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    ended: list[int] = []
    monkeypatch.setattr(Peers, "exit_now", lambda self, why: ended.append(self.rank))  # instead of this process's end
    everyone: list[Peers] = []

    def open_all(world: int) -> list[Peers]:
        told, ready = list[Any](), threading.Event()

        def open_one(rank: int) -> Peers:
            def tell(values: list[Any]) -> None:
                if rank == 0:
                    told[:] = values
                    ready.set()
                ready.wait(30)
                values[:] = told

            return Peers(rank, world, StopSignals(), tell)

        with ThreadPoolExecutor(world) as threads:
            everyone.extend(threads.map(open_one, range(world)))
        return everyone

    yield open_all
    for peers in everyone:
        peers.close()


def cut(peers: Peers) -> None:
    """Close the connections of a process as the kernel does when it is killed."""
    peers._closing.set()
    peers._thread.join()
    for connection in list(peers._lines):
        connection.close()
    peers._selector.close()


@pytest.mark.parametrize("killed", [0, 2])
def test_a_process_that_dies_is_named_to_all_the_others(opened: Open, killed: int) -> None:
    peers = opened(3)
    cut(peers[killed])
    for one in peers:
        if one.rank != killed:
            assert happens(lambda one=one: one.lost)
            assert f"process {killed} (host {socket.gethostname()}, pid " in str(one.lost)


def test_a_process_that_fails_says_why_and_one_that_is_done_is_not_missed(opened: Open) -> None:
    peers = opened(3)
    peers[1].close()
    assert happens(lambda: all(line.ended for line in peers[0]._lines.values() if "process 1" in line.name))
    time.sleep(0.6)
    assert peers[0].lost is None
    peers[2].close("a shard is cut")
    assert happens(lambda: peers[0].lost)
    assert "process 2" in str(peers[0].lost) and str(peers[0].lost).endswith("ended: a shard is cut")


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_asked_of_one_is_known_to_all(opened: Open, asked: int) -> None:
    peers = opened(3)
    peers[asked]._stops.ask("SIGUSR1")
    assert happens(lambda: all(one._stops.received == "SIGUSR1" for one in peers))


@pytest.mark.parametrize("busy", [0, 1])
def test_one_that_is_busy_is_known_to_the_others_while_it_lives(opened: Open, busy: int) -> None:
    peers = opened(3)
    others = [one for one in peers if one.rank != busy]
    assert not any(one.others_busy() for one in peers)
    peers[busy].busy = True
    assert happens(lambda: all(one.others_busy() for one in others))
    peers[busy].busy = False
    assert happens(lambda: not any(one.others_busy() for one in others))


def test_one_that_gives_no_sign_of_life_is_named(opened: Open) -> None:
    peers = opened(2)
    time.sleep(0.8)
    assert peers[0].silent(30) == []
    peers[1]._closing.set()  # its thread ends, its connection stays: as if it was stopped
    assert happens(lambda: peers[0].silent(1))
    assert "process 1 (host" in peers[0].silent(1)[0]
    assert peers[0].lost is None
    cut(peers[1])


def test_strangers_are_not_let_in(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    told, ready = list[Any](), threading.Event()

    def tell(values: list[Any]) -> None:
        told[:] = values
        ready.set()

    with ThreadPoolExecutor(2) as threads:
        hub = threads.submit(Peers, 0, 2, StopSignals(), tell)
        assert ready.wait(30)
        with socket.create_connection(("127.0.0.1", told[1])) as stranger:
            stranger.sendall(json.dumps({"hello": 1, "word": "guess", "host": "h", "pid": 1}).encode() + b"\n")
            stranger.settimeout(30)
            while stranger.recv(1000):
                pass
        other = threads.submit(Peers, 1, 2, StopSignals(), lambda values: values.__setitem__(slice(None), told))
        peers = [hub.result(30), other.result(30)]
    assert [len(one._lines) for one in peers] == [1, 1]
    for one in peers:
        one.close()


def test_one_process_alone_has_no_lines() -> None:
    peers = Peers(0, 1, StopSignals(), lambda values: None)
    assert not peers.others_busy() and peers.silent(0) == [] and peers.why_lost() is None
    peers.close("whatever")
