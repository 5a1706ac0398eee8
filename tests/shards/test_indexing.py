"""Tars written by others are a set after one look: the reader gives what webdataset does, once, whoever asks."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import webdataset

from mpp.errors import ConfigError, DataError
from mpp.shards.indexing import index_tars, is_indexed, open_any, plan_index
from mpp.shards.near_duplicates import Samples
from mpp.shards.shardset import ShardSet, open_shards, read_members
from mpp.shards.verification import verify
from mpp.stream.reader import ShardReader

INDEX_IT = (
    "from mpp.shards.indexing import open_any\n"
    "if __name__ == '__main__':\n"
    "    import sys\n"
    "    print(open_any(sys.argv[1], 'train', 0).fingerprint)\n"
)


@pytest.fixture
def tars(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """23 labelled samples in four tars that webdataset writes, the last one of two."""
    (tmp_path / "tars").mkdir()
    pattern = str(tmp_path / "tars" / "x-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as writer:
        for number in range(23):
            writer.write({"__key__": f"n/{number:05d}", "jpg": jpeg(number), "cls": number % 5, "json": {"a": 1}})
    return tmp_path / "tars"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where open_any keeps its indexes."""
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, *names: str, data: Callable[[int], bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info, payload = tarfile.TarInfo(name), data(number) if name.endswith("jpg") else b"3"
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def index(source: Path | str, out: Path, workers: int = 0, **options: str) -> ShardSet:
    index_tars(plan_index(str(source), **options), out, workers)  # type: ignore[arg-type]
    return open_shards(out, "train")


def by_webdataset(*paths: Path) -> list[tuple[bytes, int]]:
    found = []
    for path in paths:
        with open(path, "rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            found += [(one["jpg"], int(one["cls"])) for one in webdataset.tariterators.group_by_keys(files)]
    return found


def by_us(shards: ShardSet) -> list[tuple[bytes, int | None]]:
    reader = ShardReader(shards)
    return [reader.read(number) for number in range(shards.samples)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_reader_gives_what_webdataset_yields(tars: Path, tmp_path: Path, workers: int) -> None:
    shards = index(tars, tmp_path / "out", workers)
    assert by_us(shards) == by_webdataset(*sorted(tars.glob("*.tar")))
    assert ([shard.samples for shard in shards.shards], shards.classes) == ([7, 7, 7, 2], ("0", "1", "2", "3", "4"))
    assert [shard.name for shard in shards.shards] == sorted(map(str, tars.glob("*.tar")))
    report = verify(tmp_path / "out", full=True)
    assert (report.shards, report.samples, report.problems) == (4, 23, ())


def test_verify_finds_a_flipped_bit_in_a_tar_of_others(tars: Path, tmp_path: Path) -> None:
    shards = index(tars, tmp_path / "out")
    path, table = Path(shards.shards[1].name), read_members(shards, 1)
    raw = bytearray(path.read_bytes())
    raw[int(table["offset"][3, 1]) + 50] ^= 1
    path.write_bytes(raw)
    assert any("sample 3" in problem for problem in verify(tmp_path / "out", full=True).problems)
    with pytest.raises(DataError, match=r"x-000001\.tar:3 \(key 00010\): the jpg member is damaged"):
        ShardReader(shards).read(10)


def test_a_set_is_the_same_where_its_tars_have_moved_and_another_where_other_members_are_read(
    tars: Path, tmp_path: Path
) -> None:
    here = index(tars, tmp_path / "out")
    shutil.move(tars, tmp_path / "moved")
    there = index(tmp_path / "moved", tmp_path / "out2")
    assert here.shards != there.shards and here.fingerprint == there.fingerprint
    assert index(tmp_path / "moved", tmp_path / "out3", labels="none").fingerprint != here.fingerprint
    with pytest.raises(DataError, match=r"x-000000\.tar: No such file.*(.|\n)*mpp index"):
        open_shards(tmp_path / "out", "train")


def test_splits_come_from_names_and_class_names_from_an_index_beside_the_tars(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    (tmp_path / "tars").mkdir()
    for number, name in enumerate(("train-0", "train-1", "val-0")):
        write(tmp_path / f"tars/{name}.tar", f"{number}.jpg", f"{number}.cls", data=lambda _, n=number: jpeg(n))  # type: ignore[misc]
    (tmp_path / "tars/_info.json").write_text('{"class_names": ["a", "b", "c", "d", "e"]}')
    train = index(tmp_path / "tars", tmp_path / "out")
    assert (train.samples, train.classes) == (2, ("a", "b", "c", "d", "e"))
    assert open_shards(tmp_path / "out", "validation").samples == 1
    (tmp_path / "tars/_info.json").write_text('{"class_names": ["a", "b"]}')
    with pytest.raises(DataError, match=r"train-0\.tar: 0 is of class 3, but the index beside the tars names 2"):
        index(tmp_path / "tars", tmp_path / "out")


def test_faults_over_several_tars_are_named(tars: Path, tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    first, second = tars / "x-000000.tar", tars / "y.tar"
    shutil.copy(first, second)
    with pytest.raises(DataError, match=r"y\.tar has the same bytes as .*x-000000\.tar"):
        index(tars, tmp_path / "out")
    second.unlink()
    second.symlink_to(first)
    with pytest.raises(DataError, match=r"y\.tar has the same bytes as"):
        index(tars, tmp_path / "out")
    second.unlink()
    write(second, "1.jpg", "2.jpg", data=lambda number: jpeg(50 + number))
    with pytest.raises(
        DataError,
        match=r"2 of 25 samples have no \.cls, the first is .*y\.tar: 1\n  fix: mpp index TARS OUT labels=none",
    ):
        index(tars, tmp_path / "out")
    assert index(tars, tmp_path / "out", labels="none").samples == 25
    write(second, "1.jpg", "1.cls", "2.txt", data=lambda number: jpeg(50 + number))
    assert index(tars, tmp_path / "out").samples == 24
    second.write_bytes(first.read_bytes()[:2048])
    with pytest.raises(DataError, match=r"y\.tar: cut off at byte 2048"):
        index(tars, tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists(), "an index of tars that have changed is none"


def test_samples_left_out_are_said(
    tmp_path: Path, jpeg: Callable[[int], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.tar", "1.txt", "2.jpg", "3.txt", "4.jpg", data=jpeg)
    assert index(tmp_path / "x.tar", tmp_path / "out").samples == 2
    assert "2 of 4 samples have no image and are left out, the first is" in capsys.readouterr().err


def test_only_folders_that_are_free_or_indexes_are_written_to(tars: Path, tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty, and no index"):
        index(tars, tars)
    with pytest.raises(ConfigError, match="is a set of mpp-shard"):
        index(tars, tiny_shards)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        index(tars, tmp_path / "file")
    with pytest.raises(ConfigError, match="no extension of images"):
        index(tars, tmp_path / "out", image="json")


def test_what_needs_the_sources_of_images_refuses_tars_of_others(tars: Path, tmp_path: Path) -> None:
    index(tars, tmp_path / "out")
    with pytest.raises(DataError, match=r"written by others(.|\n)*mpp-shard TARS OUT"):
        Samples(tmp_path / "out")


def test_the_first_use_indexes_and_the_next_ones_read_no_tar(
    tars: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = open_any(str(tars), "train", 0)
    assert by_us(shards) == by_webdataset(*sorted(tars.glob("*.tar")))
    assert f"indexing 4 tars, once, into {cache}/index/" in capsys.readouterr().err
    path = tars / "x-000003.tar"
    before, raw = path.stat(), path.read_bytes()
    path.write_bytes(bytes(512) + raw[512:])  # of the same size and time: whoever walks it sees that it is no tar
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_any(str(tars), "train", 0) == shards and capsys.readouterr().err == ""
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    again = open_any(str(tars), "train", 0)
    assert "indexing 4 tars" in capsys.readouterr().err
    assert (again.shards, again.root != shards.root) == (shards.shards, True)
    pattern = f"{tars}/x-{{000000..000002}}.tar"
    assert open_any(pattern, "train", 0).samples == 21
    assert open_any(str(path), "train", 0).samples == 2


def test_a_table_that_a_cleaner_took_is_made_again(tars: Path, cache: Path) -> None:
    shards = open_any(str(tars), "train", 0)
    next(cache.rglob("*.members")).unlink()
    assert by_us(open_any(str(tars), "train", 0)) == by_us(shards)


def test_sets_open_as_ever_and_folders_of_others_with_an_index_are_tars(
    tars: Path, tiny_shards: Path, tmp_path: Path, cache: Path
) -> None:
    assert open_any(str(tiny_shards), "train") == open_shards(tiny_shards, "train")
    assert open_any(str(index(tars, tmp_path / "out").root), "train").samples == 23
    assert not cache.exists()
    with pytest.raises(DataError, match="no shards here"):
        open_any(str(tmp_path / "nothing"), "train")
    (tars / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": []}))
    assert open_any(str(tars), "train", 0).samples == 23
    (tars / "index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        open_any(str(tars), "train", 0)
    shutil.copytree(tiny_shards, tmp_path / "begun")
    (tmp_path / "begun/index.json").unlink()
    with pytest.raises(DataError, match="sharding has not finished"):
        open_any(str(tmp_path / "begun"), "train")


def _start(source: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", INDEX_IT, str(source)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_at_once_one_indexes_and_all_read(tars: Path, cache: Path) -> None:
    processes = [_start(tars) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert sum("indexing 4 tars" in err for _, err in answers) == 1


def test_an_index_that_was_killed_is_begun_again(tars: Path, cache: Path, jpeg: Callable[[int], bytes]) -> None:
    image = jpeg(99)
    write(
        tars / "z.tar",
        *(f"{number}.{kind}" for number in range(20_000) for kind in ("jpg", "cls")),
        data=lambda _: image,
    )
    process = _start(tars)
    while not list(cache.rglob("*.members")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(cache.rglob("index.json"))
    shards = open_any(str(tars), "train", 0)
    assert shards.samples == 20_023
    assert len(list(cache.rglob("*.members"))) == 5 and not list(cache.rglob(".mpp/tmp/*"))
    plan = plan_index(str(tars))
    assert is_indexed(plan, Path(shards.root)) and not is_indexed(
        plan_index(str(tars), split="test"), Path(shards.root)
    )


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tars: Path) -> Iterator[str]:
    """A loopback server of the tars."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tars))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_behind_urls_are_fetched_once_and_indexed(tars: Path, cache: Path, address: str, workers: int) -> None:
    shards = open_any(f"{address}/x-{{000000..000003}}.tar", "train", workers)
    here = open_any(str(tars), "train", 0)
    assert shards.fingerprint == here.fingerprint and shards.shards[0].name == f"{address}/x-000000.tar"
    assert all((read_members(shards, number) == read_members(here, number)).all() for number in range(4))
    assert not list(cache.rglob(".mpp/tmp/*"))
    with pytest.raises(DataError, match=rf"{address}/x-000004\.tar: status 404"):
        open_any(f"{address}/x-000004.tar", "train", 0)
    (tars / "login.tar").write_bytes(b"<html>please log in".ljust(1024))
    with pytest.raises(DataError, match=r"login\.tar: no tar header at byte 0.*begins with b'<html>please"):
        open_any(f"{address}/login.tar", "train", 0)
