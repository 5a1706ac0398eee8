"""Shards are fetched ahead in the order of their need, as far as the room allows, and errors reach the reader."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mpp.errors import DataError
from mpp.stream.fetching import FetchAhead


def _soon(holds: Callable[[], bool]) -> bool:
    """Wait until something holds, 5 seconds at most; then wait a little more for it to go wrong."""
    end = time.monotonic() + 5
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    return holds()


def test_no_more_is_fetched_than_there_is_room_for_and_the_rest_as_shards_are_passed() -> None:
    fetched: list[int] = []
    needs = ((shard, 10 * shard + 9) for shard in range(100))
    ahead = FetchAhead(needs, fetched.append, [30] * 100, 100, 1000)
    assert _soon(lambda: sorted(fetched) == [0, 1, 2])
    ahead.advance(9)
    assert _soon(lambda: sorted(fetched) == [0, 1, 2])
    ahead.advance(10)
    assert _soon(lambda: sorted(fetched) == [0, 1, 2, 3])
    ahead.advance(500)  # what was passed before it was fetched is not fetched any more
    assert _soon(lambda: sorted(fetched) == [0, 1, 2, 3, 50, 51, 52])
    ahead.close()


def test_shards_are_begun_in_order_of_need_by_several_threads_at_once() -> None:
    begun: list[int] = []
    gate = threading.Semaphore(0)

    def fetch(shard: int) -> None:
        begun.append(shard)
        gate.acquire()

    ahead = FetchAhead(iter([(shard, 99) for shard in (7, 3, 5, 1, 0, 2)]), fetch, [1] * 8, 100, 1000)
    assert _soon(lambda: sorted(begun) == [3, 5, 7])
    gate.release()
    assert _soon(lambda: begun[3:] == [1])
    gate.release()
    assert _soon(lambda: begun[3:] == [1, 0])
    ahead.close()
    gate.release(9)
    assert _soon(lambda: begun[3:] == [1, 0]), "nothing begins after the end"


def test_a_shard_that_comes_again_is_held_until_its_last_step_and_counted_once() -> None:
    fetched: list[int] = []
    needs = iter([(0, 5), (0, 20), (0, 7), (1, 20), (2, 30), (0, 90)])
    ahead = FetchAhead(needs, fetched.append, [50] * 3, 100, 1000)
    assert _soon(lambda: sorted(fetched) == [0, 1])
    ahead.advance(20)
    assert _soon(lambda: sorted(fetched) == [0, 1])
    ahead.advance(21)
    assert _soon(lambda: sorted(fetched) == [0, 0, 1, 2])
    ahead.close()


def test_a_shard_that_comes_again_needs_no_room_of_its_own() -> None:
    fetched: list[int] = []
    needs = iter([(0, 5), (1, 5), (0, 20), (2, 20), (3, 20)])
    ahead = FetchAhead(needs, fetched.append, [50] * 4, 100, 1000)
    assert _soon(lambda: sorted(fetched) == [0, 1])
    ahead.advance(6)
    assert _soon(lambda: sorted(fetched) == [0, 1, 2])
    ahead.close()


def test_a_shard_that_never_fits_does_not_hold_up_the_others() -> None:
    fetched: list[int] = []
    ahead = FetchAhead(iter([(0, 9), (1, 9), (2, 9)]), fetched.append, [10, 101, 90], 100, 1000)
    assert _soon(lambda: sorted(fetched) == [0, 2])
    ahead.close()


def test_what_the_network_refuses_is_counted_and_what_is_wrong_is_raised_at_the_next_step() -> None:
    def fetch(shard: int) -> bool:
        if shard < 2:
            raise OSError("no route")
        raise DataError("0.tar: sha256 a instead of b")

    ahead = FetchAhead(iter([(0, 9), (1, 9)]), fetch, [1] * 3, 100, 1000)
    assert _soon(lambda: ahead.failures == 2)
    ahead.advance(1)
    ahead.close()
    ahead = FetchAhead(iter([(2, 9), (0, 9), (1, 9)]), fetch, [1] * 3, 2, 1000)
    assert _soon(lambda: not any(thread.name == "fetch ahead" for thread in threading.enumerate()))
    for step in (1, 2):
        with pytest.raises(DataError, match="sha256 a instead of b"):
            ahead.advance(step)


def test_an_error_in_the_order_itself_is_raised_too() -> None:
    def needs() -> Iterator[tuple[int, int]]:
        yield 0, 9
        raise ValueError("no such lane")

    fetched: list[int] = []
    ahead = FetchAhead(needs(), fetched.append, [1], 100, 1000)
    assert _soon(lambda: not any(thread.name == "fetch ahead" for thread in threading.enumerate()))
    with pytest.raises(ValueError, match="no such lane"):
        ahead.advance(1)
    assert fetched == [0]


@pytest.mark.parametrize("room", [300, 99, 0])
def test_an_endless_order_of_shards_that_are_all_there_or_all_too_large_is_not_followed_for_ever(room: int) -> None:
    given, fetched = [0], list[int]()

    def needs() -> Iterator[tuple[int, int]]:
        for given[0] in itertools.count():
            yield given[0] % 3, given[0]

    ahead = FetchAhead(needs(), fetched.append, [100] * 3, room, 50)
    for step in (0, 1, 2, 40):
        ahead.advance(step)
        assert _soon(lambda step=step: given[0] == step + 51)
    assert sorted(fetched) == ([0, 1, 2] if room == 300 else [])
    ahead.close()
