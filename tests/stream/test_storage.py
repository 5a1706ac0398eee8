"""Ranges of shards come the same from disks, servers and the node's cache; files that are not the set's are named."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_server import FaultyServer

from mpp.errors import DataError
from mpp.shards.shardset import ShardSet, open_shards, place, read_members, sidecar
from mpp.stream.cache import NodeCache
from mpp.stream.reader import BadSample, ShardReader
from mpp.stream.storage import ShardStorage

Local = Callable[..., ShardSet]


@pytest.fixture
def local(faulty_server: FaultyServer, make_set: Local) -> ShardSet:
    """37 samples in 4 shards below the folder that the server serves."""
    return make_set(faulty_server.folder, "folders")


@pytest.fixture
def remote(local: ShardSet, faulty_server: FaultyServer) -> ShardSet:
    """The same set, behind the server."""
    shards = open_shards(faulty_server.url("set"), "train")
    return replace(shards, root=faulty_server.url("set", user="me:sesame"))


def content(shards: ShardSet, number: int) -> bytes:
    return Path(shards.root, shards.shards[number].name).read_bytes()


def test_ranges_of_a_local_shard_are_those_of_its_file(shards: ShardSet) -> None:
    storage = ShardStorage([shards])
    for number in (3, 0, 3, 1):
        whole = content(shards, number)
        for offset, size in ((0, 1), (512, 4000), (len(whole) - 5, 5), (0, len(whole)), (len(whole) - 5, 100)):
            assert storage.read(number, offset, size) == whole[offset : offset + size]
    assert storage.traffic.bytes > 0 and (storage.traffic.hits, storage.traffic.misses) == (0, 0)
    assert not storage.fetch(0), "what is on a disk needs no copy"


@pytest.mark.parametrize("rows", [[0], [9], [2, 3, 4], [0, 9], [0, 1, 2, 8, 9], list(range(10)), [5, 5]])
def test_members_are_the_rows_of_the_table_near_or_far(shards: ShardSet, rows: list[int]) -> None:
    storage = ShardStorage([shards])
    assert np.array_equal(storage.members(1, np.array(rows)), read_members(shards, 1)[rows])


def test_shards_of_several_sets_are_numbered_on(shards: ShardSet, uneven: ShardSet) -> None:
    storage = ShardStorage([shards, uneven])
    assert [shard.number for shard in storage.shards] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
    assert storage.read(10, 0, 512) == Path(uneven.shards[6].name).read_bytes()[:512]
    assert storage.where(3) == "train/train-000003.tar" and storage.where(4) == uneven.shards[0].name


def test_few_descriptors_are_enough_for_many_shards(
    tmp_path: Path, make_tars: Callable[..., Path], index: Callable[..., ShardSet]
) -> None:
    index(make_tars(tmp_path / "tars", [1] * 40), tmp_path / "index")
    program = (
        "import os, resource, numpy as np\n"
        "from mpp.shards.shardset import open_shards\n"
        "from mpp.stream.storage import ShardStorage\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 64))\n"
        f"shards = open_shards({str(tmp_path / 'index')!r}, 'train')\n"
        "storage, before = ShardStorage([shards]), len(os.listdir('/proc/self/fd'))\n"
        "for number in [*range(40), *range(40)]:\n"
        "    assert len(storage.read(number, 0, 512)) == 512\n"
        "    assert storage.members(number, np.array([0])).shape == (1, 2)\n"
        "print(len(os.listdir('/proc/self/fd')) - before, resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "storage.close()\n"
        "print(len(os.listdir('/proc/self/fd')) - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split() == ["16", "64", "0"]


def test_a_shard_replaced_by_one_of_another_size_is_named(tmp_path: Path, make_set: Local) -> None:
    shards = make_set(tmp_path, "folders")
    storage, tar = ShardStorage([shards]), Path(shards.root, shards.shards[1].name)
    before = storage.read(1, 0, 4096)
    (tmp_path / "new.tar").write_bytes(bytes(100))
    (tmp_path / "new.tar").replace(tar)
    assert storage.read(1, 0, 4096) == before, "what is open is still the shard that was opened"
    storage.close()
    message = rf"train-000001\.tar: 100 of {shards.shards[1].bytes} bytes, it is not the shard that was opened"
    with pytest.raises(DataError, match=message + r"(.|\n)*fix: mpp verify"):
        storage.read(1, 0, 4096)
    assert storage.read(0, 0, 512) == content(shards, 0)[:512]


def make_unreadable(file: Path, fault: str) -> None:
    file.unlink()
    if fault == "loop":
        file.symlink_to(file)
    elif fault == "forbidden":
        file.touch(mode=0)
    elif fault == "folder":
        file.mkdir()
    elif fault == "empty":
        file.touch()


FAULTS = [
    ("missing", "No such file or directory"),
    ("loop", "Too many levels of symbolic links"),
    pytest.param("forbidden", "Permission denied", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may")),
    ("folder", r"\d+ of \d+ bytes"),
    ("empty", r"0 of \d+ bytes"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
@pytest.mark.parametrize("kind", ["tar", "members"])
def test_a_shard_or_table_that_cannot_be_read_is_named(
    tmp_path: Path, make_set: Local, kind: str, fault: str, message: str
) -> None:
    shards = make_set(tmp_path, "none")
    name = shards.shards[2].name if kind == "tar" else sidecar(shards.shards[2].name, "members")
    make_unreadable(Path(place(shards.root, name)), fault)
    storage = ShardStorage([shards])
    with pytest.raises(
        DataError, match=rf"train-000002\.{kind}: {message}(.|\n)*fix: mpp verify {shards.root}"
    ) as said:
        storage.read(2, 0, 1) if kind == "tar" else storage.members(2, np.array([0]))
    assert said.value.exit_code == 3
    for other in (0, 1, 3):
        assert storage.read(other, 0, 1) and len(storage.members(other, np.array([0])))


def test_a_remote_set_is_read_in_ranges_until_it_is_in_the_cache(
    local: ShardSet, remote: ShardSet, faulty_server: FaultyServer, tmp_path: Path
) -> None:
    storage = ShardStorage([remote], NodeCache(tmp_path / "cache", 10**9))
    whole, asked = content(local, 1), faulty_server.asked()
    assert storage.read(1, 512, 1000) == whole[512:1512] and storage.read(1, 0, 10) == whole[:10]
    assert (storage.traffic.hits, storage.traffic.misses) == (0, 2)
    assert [one.range for one in faulty_server.requests[asked:]] == ["bytes=512-1511", "bytes=0-9"]
    assert storage.fetch(1) and storage.fetch(1)
    assert faulty_server.asked() == asked + 3
    for offset in (0, 512, 5000):
        assert storage.read(1, offset, 1000) == whole[offset : offset + 1000]
    assert faulty_server.asked() == asked + 3, "nothing more is asked for"
    assert (storage.traffic.hits, storage.traffic.misses) == (3, 2), "reads are counted, with and without the cache"
    assert storage.traffic.bytes == 1010 + 3000


def test_several_readers_of_a_node_share_its_cache(
    remote: ShardSet, faulty_server: FaultyServer, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    some = ShardStorage([remote], cache)
    assert all(some.fetch(number) for number in range(4))
    some.members(0, np.array([0]))
    asked = faulty_server.asked()
    other: ShardStorage = pickle.loads(pickle.dumps(ShardStorage([remote], cache)))
    for number in range(4):
        assert other.fetch(number) and len(other.read(number, 0, 512)) == 512
    assert np.array_equal(other.members(0, np.array([3])), some.members(0, np.array([3])))
    assert faulty_server.asked() == asked and other.traffic.misses == 0


@pytest.mark.parametrize("limit", [0, 5000, 30_000])
def test_a_cache_that_is_too_small_or_none_only_costs_requests(
    local: ShardSet, remote: ShardSet, tmp_path: Path, limit: int
) -> None:
    storage = ShardStorage([remote], NodeCache(tmp_path / "cache", limit) if limit else None)
    assert all(record.bytes > 30_000 for record in remote.shards[:3])
    for number in range(3):
        assert not storage.fetch(number)
        assert storage.read(number, 1024, 700) == content(local, number)[1024:1724]
        assert np.array_equal(storage.members(number, np.array([1, 7])), read_members(local, number)[[1, 7]])
    assert (storage.traffic.hits, storage.traffic.misses) == (0, 3)
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) if (tmp_path / "cache").exists() else 0
    assert kept <= limit


def test_a_copy_that_goes_is_done_without(local: ShardSet, remote: ShardSet, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    storage = ShardStorage([remote], cache)
    assert storage.fetch(0)
    cache.discard(remote.shards[0].sha256)
    assert storage.read(0, 0, 600) == content(local, 0)[:600] and storage.traffic.misses == 1


def test_a_flipped_bit_behind_a_url_spoils_one_sample_with_a_cache_and_without(
    local: ShardSet, remote: ShardSet, tmp_path: Path, flip: Callable[..., None]
) -> None:
    flip(local, 0, 3)
    cache = NodeCache(tmp_path / "cache", 10**9)
    with pytest.raises(OSError, match="sha256"):
        ShardStorage([remote], cache).fetch(0)
    ids = np.arange(6, dtype=np.int64)
    for reader in (ShardReader(remote), ShardReader(remote, cache=cache)):
        assert [isinstance(sample, BadSample) for sample in reader.read_all(ids)] == [False] * 3 + [True] + [False] * 2


def test_a_short_copy_is_thrown_away(local: ShardSet, remote: ShardSet, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    reader = ShardReader(remote, cache=cache)
    assert reader.storage.fetch(0) and reader.read(0)
    reader.close()
    for copy in (tmp_path / "cache").iterdir():
        copy.chmod(0o600)
        os.truncate(copy, copy.stat().st_size // 2)
    assert reader.read(0) == ShardReader(local).read(0)


def test_a_copy_that_rots_is_thrown_away_and_the_shard_asked_for_again(
    local: ShardSet, remote: ShardSet, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    reader = ShardReader(remote, cache=cache)
    assert reader.storage.fetch(0)
    copy = tmp_path / "cache" / remote.shards[0].sha256
    copy.chmod(0o600)
    copy.write_bytes(bytes(copy.stat().st_size))
    ids = np.arange(remote.shards[0].samples, dtype=np.int64)
    assert reader.read_all(ids) == ShardReader(local).read_all(ids)
    assert not copy.exists()


def test_retries_are_counted_and_what_never_comes_is_named_without_secrets(
    local: ShardSet, remote: ShardSet, faulty_server: FaultyServer
) -> None:
    storage = ShardStorage([remote])
    faulty_server.add_faults("set/train/train-000001.tar", ["503", "cut", "short"])
    assert storage.read(1, 0, 2000) == content(local, 1)[:2000] and storage.traffic.retries == 3
    faulty_server.add_faults("set/train/train-000002.tar", ["404"])
    with pytest.raises(DataError, match=r"http://127.*/set/train/train-000002\.tar: status 404") as caught:
        storage.read(2, 0, 10)
    assert "nothing to see here" in str(caught.value) and "sesame" not in str(caught.value)
    faulty_server.add_faults("*.members", ["404"])
    with pytest.raises(DataError, match=r"train-000003\.members.*status 404") as caught:
        storage.members(3, np.array([0]))
    assert "sesame" not in str(caught.value)
    assert storage.where(0) == "train/train-000000.tar"
