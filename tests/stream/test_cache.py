"""A node's copies of remote files: each is made once, whole or not at all, and within the limit."""

import errno
import fcntl
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_server import ALWAYS, FaultyServer

from mpp.errors import ConfigError, DataError
from mpp.processes import worker_context
from mpp.sources import remote
from mpp.stream.cache import NodeCache

SIZE = 100_000


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    """A cache with room for three files and a half."""
    return NodeCache(tmp_path / "node" / "cache", 3 * SIZE + SIZE // 2)


@pytest.fixture
def put(faulty_server: FaultyServer) -> Callable[[int], tuple[str, str, int, str]]:
    """Return a function that serves a file of random bytes and returns what ``fetch`` wants to know of it."""

    def make(number: int) -> tuple[str, str, int, str]:
        data = hashlib.shake_128(bytes([number])).digest(SIZE)
        (faulty_server.folder / f"{number}.tar").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        return digest, faulty_server.url(f"{number}.tar", user="me:sesame", query="k=sesame"), SIZE, digest

    return make


def _content(cache: NodeCache, key: str) -> bytes | None:
    descriptor = cache.open(key)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _names(cache: NodeCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def test_a_file_is_fetched_once_and_then_open_to_all(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = put(1)
    key = wanted[0]
    assert cache.open(key) is None
    assert cache.fetch(*wanted) and cache.fetch(*wanted)
    twin: NodeCache = pickle.loads(pickle.dumps(cache))
    assert twin == cache and twin.fetch(*wanted)
    assert _content(twin, key) == (faulty_server.folder / "1.tar").read_bytes()
    assert faulty_server.asked() == 1 and _names(cache) == {key}
    cache.discard(key)
    cache.discard(key)
    assert cache.open(key) is None and _names(cache) == set()


def test_a_faulty_server_is_borne_with(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = put(1)
    faulty_server.add_faults("1.tar", ["503", "503", "cut"])
    retries: list[int] = []
    assert cache.fetch(*wanted, on_retry=lambda: retries.append(1))
    assert _content(cache, wanted[0]) == (faulty_server.folder / "1.tar").read_bytes()
    assert len(retries) == 3


def test_what_does_not_come_leaves_nothing_behind(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    faulty_server.add_faults("1.tar", ["404"])
    faulty_server.add_faults("2.tar", ALWAYS("503"))
    for number, status in ((1, "404"), (2, "503")):
        with pytest.raises(OSError, match=f"status {status}") as caught:
            cache.fetch(*put(number))
        assert "sesame" not in str(caught.value)
    assert _names(cache) == set()
    assert cache.fetch(*put(1)), "the next one may try again"


@pytest.mark.parametrize("known", [True, False])
def test_wrong_bytes_are_an_error_that_says_what_came(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer, known: bool
) -> None:
    key, url, size, digest = put(1)
    faulty_server.add_faults("1.tar", ["flip"])
    if not known:
        assert cache.fetch(key, url, size, "")
        return
    with pytest.raises(OSError, match=rf"/1\.tar\?k=\.\.\.: sha256 [0-9a-f]{{64}} instead of {digest}") as caught:
        cache.fetch(key, url, size, digest)
    assert "sesame" not in str(caught.value) and _names(cache) == set()


def test_a_file_of_another_size_is_an_error_that_says_so(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]]
) -> None:
    key, url, size, _ = put(1)
    for wrong in (size - 1, size + 1):
        with pytest.raises(DataError, match=rf"/1\.tar\?k=\.\.\.: a file of {size} bytes instead of {wrong}") as caught:
            cache.fetch(key, url, wrong, "")
        assert "sesame" not in str(caught.value) and _names(cache) == set()


def test_files_unused_for_longest_make_room_and_stay_with_those_who_read_them(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = [put(number) for number in range(5)]
    keys = [each[0] for each in wanted]
    for age, each in enumerate(wanted[:3]):
        assert cache.fetch(*each)
        os.utime(cache.folder / each[0], (1000 + age, 1000 + age))
    held = cache.open(keys[0])  # also: used now
    assert held is not None
    assert cache.fetch(*wanted[1])  # here already, and used now
    assert cache.fetch(*wanted[3])
    assert _names(cache) == {keys[0], keys[1], keys[3]}
    os.utime(cache.folder / keys[0], (1000, 1000))
    assert cache.fetch(*wanted[4])
    assert _names(cache) == {keys[1], keys[3], keys[4]}
    with os.fdopen(held, "rb") as file:
        assert file.read() == (faulty_server.folder / "0.tar").read_bytes()


def test_a_file_beyond_the_limit_is_not_asked_for(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    assert NodeCache(cache.folder, SIZE).fetch(*put(1))
    key, url, *_ = put(2)
    assert not NodeCache(cache.folder, SIZE).fetch(key, url, SIZE + 1, "")
    assert faulty_server.asked() == 1 and _names(cache) == {put(1)[0]}, "and nothing makes room for it"


def test_other_files_of_the_folder_are_left_alone(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]]
) -> None:
    cache.folder.mkdir(parents=True)
    for name in ("README", "notes.part"):
        (cache.folder / name).write_bytes(bytes(4 * SIZE))
    assert NodeCache(cache.folder, SIZE).fetch(*put(1))
    assert _names(cache) == {"README", "notes.part", put(1)[0]}


@pytest.mark.parametrize("key", ["", "abc", "../../etc/passwd0", "A" * 16, "0" * 65, "0" * 15 + "\n", "0" * 16 + "\n"])
def test_what_is_no_key_names_no_file(cache: NodeCache, key: str) -> None:
    for use in (cache.open, cache.discard, lambda key: cache.fetch(key, "http://127.0.0.1:9/", 1, "")):
        with pytest.raises(DataError, match="cannot name a copy"):
            use(key)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, put: Callable[..., tuple[str, str, int, str]]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/cache: cannot be the cache, Not a directory"):
        NodeCache(tmp_path / "file" / "cache", 2 * SIZE).fetch(*put(1))


def test_a_full_disk_is_a_warning_and_no_copy(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = put(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.warns(UserWarning, match="cache: full, shards are not kept there"):
            assert not cache.fetch(*wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _names(cache) == set() and faulty_server.asked() == 0
    assert cache.fetch(*wanted)


def _fetch(cache: NodeCache, wanted: tuple[str, str, int, str], wait: bool, started: object, results: object) -> None:
    remote.STALL_SECONDS = 30.0
    started.wait()  # type: ignore[attr-defined]
    here = cache.fetch(*wanted, wait=wait)
    results.put((wait, here, cache.open(wanted[0]) is not None))  # type: ignore[attr-defined]


def test_processes_at_once_download_once(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    context = worker_context()
    faulty_server.add_faults("1.tar", ["slow"])
    started, results, wanted = context.Barrier(4), context.Queue(), put(1)
    waits = [True, True, False, False]
    workers = [context.Process(target=_fetch, args=(cache, wanted, wait, started, results)) for wait in waits]
    for worker in workers:
        worker.start()
    seen = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert faulty_server.asked() == 1
    assert all(here == opened for _, here, opened in seen), "what is said to be here is"
    assert all(here for wait, here, _ in seen if wait)
    assert sum(here for _, here, _ in seen) >= 2 and _names(cache) == {wanted[0]}


def test_one_that_does_not_wait_passes_by_and_one_that_waits_takes_over_from_one_that_failed(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = put(1)
    cache.folder.mkdir(parents=True)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(cache.fetch(*wanted, wait=True)))
    with (cache.folder / f"{wanted[0]}.part").open("wb") as part:
        part.write(bytes(2 * SIZE))
        fcntl.flock(part, fcntl.LOCK_EX)
        assert not cache.fetch(*wanted)
        waiting.start()
        time.sleep(0.1)
        assert results == [] and faulty_server.asked() == 0
    waiting.join()
    assert results == [True] and _content(cache, wanted[0]) == (faulty_server.folder / "1.tar").read_bytes()


def test_parts_that_others_are_at_count_and_stay(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    cache.folder.mkdir(parents=True)
    assert cache.fetch(*put(2))
    with (cache.folder / ("0" * 64 + ".part")).open("wb") as part:
        part.truncate(3 * SIZE)
        fcntl.flock(part, fcntl.LOCK_EX)
        assert not cache.fetch(*put(1))
        assert _names(cache) == {"0" * 64 + ".part"}
    assert cache.fetch(*put(1)) and _names(cache) == {put(1)[0]}


def test_a_killed_download_leaves_no_copy_and_its_rest_is_cleared_away(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], faulty_server: FaultyServer
) -> None:
    wanted = put(1)
    faulty_server.add_faults("1.tar", ["stall"])
    code = f"from pathlib import Path; from mpp.stream.cache import NodeCache; NodeCache(Path({str(cache.folder)!r}), "
    command = [sys.executable, "-c", code + f"{cache.limit_bytes}).fetch(*{wanted!r})"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        for _ in range(3000):
            if faulty_server.asked():
                break
            time.sleep(0.01)
        assert _names(cache) == {f"{wanted[0]}.part"} and cache.open(wanted[0]) is None
        process.send_signal(signal.SIGKILL)
    assert _names(cache) == {f"{wanted[0]}.part"} and cache.open(wanted[0]) is None
    assert cache.fetch(*put(2)) and _names(cache) == {put(2)[0]}
    assert cache.fetch(*wanted) and _content(cache, wanted[0]) == (faulty_server.folder / "1.tar").read_bytes()


def test_an_error_of_the_disk_is_not_taken_for_a_full_one(
    cache: NodeCache, put: Callable[..., tuple[str, str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="broken disk"):
        cache.fetch(*put(1))
    assert _names(cache) == set()
