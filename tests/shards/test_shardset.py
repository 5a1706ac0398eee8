"""Opening finds every cut, verifying finds every flipped bit, and both name the shard."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mpp.errors import ConfigError, DataError
from mpp.shards.shardset import fingerprint, open_shards, place, read_members, sidecar, split_names
from mpp.shards.verification import verify


def test_a_set_opens_with_its_counts_classes_and_tables(root: Path) -> None:
    shards = open_shards(root, "train")
    assert (shards.samples, shards.classes) == (20, ("a", "b"))
    assert [shard.name for shard in shards.shards] == ["train/train-000000.tar", "train/train-000001.tar"]
    assert shards.shards[0].members == ("cls", "jpg", "json")
    assert shards.fingerprint == fingerprint(shards.shards) != open_shards(root, "test").fingerprint
    labels = []
    for number, shard in enumerate(shards.shards):
        table, raw = read_members(shards, number), (root / shard.name).read_bytes()
        assert table.shape == (shard.samples, 3)
        labels += [int(raw[offset : offset + size]) for offset, size, _ in table[:, 0].tolist()]
    assert sorted(labels) == [0] * 10 + [1] * 10


def test_a_truncated_shard_is_named_before_anything_is_read(root: Path) -> None:
    shards = open_shards(root, "train")
    path = root / shards.shards[1].name
    fourth = int(read_members(shards, 1)["offset"][4, 0]) - 512
    for size in (fourth, fourth + 100, fourth + 600):
        with open(path, "r+b") as file:
            file.truncate(size)
        with pytest.raises(DataError, match=rf"train-000001\.tar: 4 of 10 samples, {size} of \d+ bytes") as caught:
            open_shards(root, "train")
        assert "fix: " in str(caught.value)
    assert open_shards(root, "test").samples == 3


def test_missing_shards_tables_splits_and_sets_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'val', it has test, train"):
        open_shards(root, "val")
    (root / ".mpp/train/train-000000.members").unlink()
    with pytest.raises(DataError, match=r"train-000000\.members: No such file"):
        read_members(open_shards(root, "train"), 0)
    (root / "test/test-000000.tar").unlink()
    with pytest.raises(DataError, match=r"test-000000\.tar: No such file"):
        open_shards(root, "test")
    (root / "index.json").unlink()
    with pytest.raises(DataError, match="sharding has not finished"):
        open_shards(root, "train")
    with pytest.raises(DataError, match="no shards here"):
        open_shards(tmp_path / "nothing", "train")


@pytest.mark.parametrize("tail", [512, 5000, 10_240])
def test_a_tail_of_zeros_keeps_the_size_and_is_found_by_the_last_member(root: Path, tail: int) -> None:
    path = root / "train/train-000001.tar"
    raw = path.read_bytes().rstrip(b"\0")
    path.write_bytes(raw[:-tail] + bytes(path.stat().st_size - len(raw) + tail))
    (problem,) = verify(root, full=False).problems
    assert problem.startswith("train/train-000001.tar: the last member is damaged")
    with pytest.raises(DataError, match="the last member is damaged"):
        open_shards(root, "train")


@pytest.mark.parametrize("fault", ["empty", "missing", "unreadable", "swapped for another", "swapped for its copy"])
def test_a_shard_that_is_not_the_recorded_one_is_named(root: Path, fault: str) -> None:
    path, other = root / "train/train-000001.tar", root / "test/test-000000.tar"
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "missing":
        path.unlink()
    elif fault == "unreadable":  # whoever runs this, root too
        path.unlink()
        path.symlink_to(path)
    elif fault == "swapped for another":
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes((root / "train/train-000000.tar").read_bytes())
    problems = verify(root, full=True).problems
    assert problems and all(problem.startswith("train/train-000001.tar") for problem in problems)
    if fault != "swapped for its copy":  # that has the size of the other, so only full verification and CRCs tell
        with pytest.raises(DataError, match=r"train-000001\.tar"):
            open_shards(root, "train")


def test_the_splits_are_named(root: Path, tmp_path: Path) -> None:
    assert split_names(root) == ("test", "train")
    with pytest.raises(DataError, match="no shards here"):
        split_names(tmp_path / "nothing")


class Server(ThreadingHTTPServer):
    """A loopback server of one folder; it notes what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: list[str] = []


class Handler(SimpleHTTPRequestHandler):
    """Answers, and says nothing."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    """A server of the folder in which the set ``root`` lies, as ``out``."""
    with Server(root.parent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_set_behind_a_url_opens_without_a_request_a_shard(root: Path, server: Server) -> None:
    address = f"http://127.0.0.1:{server.server_port}/out"
    here, there = open_shards(root, "train"), open_shards(f"{address}/", "train")
    assert server.asked == ["/out/index.json"]
    assert (there.root, there.shards, there.fingerprint) == (address, here.shards, here.fingerprint)
    assert [read_members(there, number).tobytes() for number in range(2)] == [
        read_members(here, number).tobytes() for number in range(2)
    ]
    assert server.asked[1:] == ["/out/.mpp/train/train-000000.members", "/out/.mpp/train/train-000001.members"]


def test_what_is_amiss_behind_a_url_is_said_without_its_secrets(root: Path, server: Server) -> None:
    address = f"127.0.0.1:{server.server_port}"
    with pytest.raises(ConfigError, match="a user or password in a URL") as caught:
        open_shards(f"http://user:hunter2@{address}/nothing", "train")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DataError, match="status 404"):
        open_shards(f"http://{address}/nothing", "train")
    with pytest.raises(DataError, match=f"http://{address}/out: no split 'val', it has test, train"):
        open_shards(f"http://{address}/out", "val")
    (root / ".mpp/train/train-000000.members").write_bytes(b"short")
    with pytest.raises(DataError, match=r"train-000000\.members: 5 of \d+ bytes"):
        read_members(open_shards(f"http://{address}/out", "train"), 0)
    with pytest.raises(ConfigError, match="pipe: is not read"):
        open_shards("pipe:cat /etc/passwd", "train")
    for command in (split_names, partial(verify, full=False)):
        with pytest.raises(DataError, match=r"file systems alone(.|\n)*copy the set"):
            command(Path(f"http://{address}/out"))


def test_a_shard_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    tar, table = root / "train/train-000000.tar", root / ".mpp/train/train-000000.members"
    shutil.copy(tar, tmp_path / "mine.tar")
    for name in (str(tmp_path / "mine.tar"), "https://host/mine.tar"):
        assert place(str(root), name) == name
        (root / sidecar(name, "members")).parent.mkdir(exist_ok=True)
        shutil.copy(table, root / sidecar(name, "members"))
        index = json.loads((root / "index.json").read_text())
        entry = next(entry for entry in index["shardlist"] if entry["url"].startswith("train/"))
        index |= {"shardlist": [{**entry, "url": name}]}
        (root / "index.json").write_text(json.dumps(index))
        assert read_members(open_shards(root, "train"), 0).tobytes() == table.read_bytes()
        index["shardlist"] = [{**entry, "url": "train/train-000000.tar"}]
        (root / "index.json").write_text(json.dumps(index))
    names = {sidecar(name, "json") for name in ("/a/x.tar", "/b/x.tar", "s3://a/x.tar", "/a/x", "a/x.tar")}
    assert len(names) == 5 and ".mpp/a/x.json" in names
    assert sum(name.startswith(".mpp/elsewhere/") and name.endswith("-x.json") for name in names) == 4


def test_a_shard_elsewhere_of_another_size_is_named(root: Path, tmp_path: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    index["shardlist"][0]["url"] = str(tmp_path / "mine.tar")
    (root / "index.json").write_text(json.dumps(index))
    (tmp_path / "mine.tar").write_bytes(b"0")
    split = index["shardlist"][0]["split"]
    with pytest.raises(DataError, match=r"mine\.tar: 1 of \d+ bytes"):
        open_shards(root, split)


def test_zeros_at_the_end_of_a_shard_of_the_right_size_are_found_at_once(tiny_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_shards, tmp_path / "set")
    tar = tmp_path / "set" / open_shards(tmp_path / "set", "train").shards[1].name
    size = tar.stat().st_size
    tar.chmod(0o644)
    os.truncate(tar, size - 12_000)
    os.truncate(tar, size)
    with pytest.raises(DataError, match=r"train-000001\.tar: the last member is damaged"):
        open_shards(tmp_path / "set", "train")
