"""A shard is plain USTAR, complete before its record exists, and a pure function of its task."""

import errno
import io
import json
import resource
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpp.errors import DiskError
from mpp.shards import writer
from mpp.shards.corpora import RawSample
from mpp.shards.images import Accepted, ImagePolicy
from mpp.shards.layout import ShardPlan
from mpp.shards.shardset import MEMBER
from mpp.shards.writer import ShardTask, sample_members, tar_header, write_shard

NAME = "train/train-000007.tar"


class Stub:
    """Serves images from memory; an ``OSError`` stands for a file that cannot be read."""

    def __init__(self, *images: bytes | OSError) -> None:
        self.images = images

    def read(self, split: str, item: int) -> RawSample:
        image = self.images[item]
        if isinstance(image, OSError):
            raise image
        return RawSample(image, f"{split}/{item}.jpg")

    def narrow(self, split: str, items: list[int]) -> "Stub":
        return self


def task(root: Path, reader: Stub, *items: int) -> ShardTask:
    plan = ShardPlan("train", NAME, 40, np.array(items, np.int64))
    return ShardTask(root, plan, plan.items + 3, reader, ImagePolicy(), "layout", "options")


def test_headers_are_those_of_the_standard_library() -> None:
    for name, size in (("000000001.jpg", 0), ("x.json", 511), ("000000001.jpg", 8**11 - 1)):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o444, 0
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_members_stand_in_order_and_the_table_points_at_their_payloads(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    record = write_shard(task(tmp_path, Stub(jpeg(0), jpeg(1)), 1, 0))
    raw = (tmp_path / NAME).read_bytes()
    assert len(raw) == record["bytes"] and len(raw) % 10_240 == 0
    with tarfile.open(fileobj=io.BytesIO(raw), format=tarfile.USTAR_FORMAT) as tar:
        members = tar.getmembers()
        payloads = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    keys = ("000000040", "000000041")
    assert [member.name for member in members] == [f"{key}.{part}" for key in keys for part in ("cls", "jpg", "json")]
    assert {(m.uid, m.gid, m.mtime, m.mode, m.type) for m in members} == {(0, 0, 0, 0o444, tarfile.REGTYPE)}
    assert payloads[:2] == [b"4", jpeg(1)] and payloads[3:5] == [b"3", jpeg(0)]
    assert json.loads(payloads[2])["source"] == "train/1.jpg"
    table = np.fromfile(tmp_path / ".mpp/train/train-000007.members", MEMBER)
    assert table["offset"].tolist() == [member.offset_data for member in members]
    assert table["size"].tolist() == [member.size for member in members]
    assert table["crc32"].tolist() == [zlib.crc32(payload) for payload in payloads]


def test_refusals_leave_no_trace_in_the_tar_and_are_recorded(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    images = (jpeg(0), b"", OSError(errno.EACCES, "Permission denied", "x.jpg"), OSError(errno.EFBIG, "big", "y"))
    record = write_shard(replace(task(tmp_path, Stub(*images), 0, 1, 2, 3), labels=None))
    assert (record["listed"], record["samples"], record["refused"]) == (4, 1, 3)
    assert [row[:3] for row in record["refusals"]] == [
        ("train/1.jpg", "empty", "0 bytes"),
        ("x.jpg", "unreadable", "Permission denied"),
        ("y", "too_large", "big"),
    ]
    assert record["members"] == ["jpg", "json"]
    assert record == {
        **json.loads((tmp_path / ".mpp/train/train-000007.json").read_text()),
        "refusals": record["refusals"],
    }


def test_a_shard_of_which_every_image_is_refused_has_a_record_and_no_tar(tmp_path: Path) -> None:
    record = write_shard(task(tmp_path, Stub(b"no"), 0))
    assert (record["samples"], record["refused"], record["bytes"]) == (0, 1, 0)
    assert not (tmp_path / NAME).exists()
    assert (tmp_path / ".mpp/train/train-000007.json").exists()


def test_equal_tasks_give_equal_bytes(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    reader = Stub(jpeg(0), jpeg(1))
    records = [write_shard(task(tmp_path / name, reader, 0, 1)) for name in "ab"]
    assert records[0] == records[1]
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()
    other = replace(task(tmp_path / "c", reader, 0, 1), policy=ImagePolicy(resize=8))
    assert write_shard(other)["sha256"] != records[0]["sha256"]


def test_the_record_comes_after_the_tar(
    tmp_path: Path, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(root: Path, name: str, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_atomic", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_shard(task(tmp_path, Stub(jpeg(0)), 0))
    assert (tmp_path / NAME).exists()
    assert not list(tmp_path.glob(".mpp/train/*"))


def test_a_full_disk_is_one_message_and_leaves_no_partial_file(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(DiskError, match=r"train-000007\.tar: cannot write"):
            write_shard(task(tmp_path, Stub(jpeg(0) * 9), 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("letter", ["a", "ü", "\n", "日"])
def test_the_json_stays_below_512_bytes_and_keeps_the_end_of_the_source(letter: str) -> None:
    image = Accepted(b"", (10**5, 10**5), (10**5, 10**5), ("alpha_RGBA", "upright", "resized", "encoded_jpg"))
    encoded = sample_members("000000000", None, letter * 3000 + "/name.jpg", image, "f" * 64, "jpg")["json"]
    assert 400 < len(encoded) < 512
    assert json.loads(encoded)["source"].endswith("/name.jpg")
