"""A shard is plain USTAR, complete before its record exists, and a pure function of its task."""

import hashlib
import io
import json
import os
import resource
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.errors import DiskError
from mpp.shards.images import Accepted
from mpp.shards.options import ShardOptions
from mpp.shards.outputs import LocalOutput
from mpp.shards.sharding import plan_shards
from mpp.shards.shardset import MEMBER
from mpp.shards.writer import ShardTask, sample_members, tar_header, write_shard
from mpp.sources.files import printable

NAME = "train/train-000000.tar"
Jpeg = Callable[[int], bytes]


def planned(folder: Path, images: Mapping[str, bytes], number: int = 0, **options: Any) -> ShardTask:
    """Write ``images`` as files, plan their shards, and return the task of one of them."""
    for name, image in images.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    plan_shards(ShardOptions(source=str(folder / "source"), out=str(folder / "out"), **options))
    return ShardTask(LocalOutput(folder / "out"), "train", number)


def record_of(task: ShardTask) -> dict[str, Any]:
    text = (task.output.work / f".mpp/train/train-{task.number:06d}.json").read_text()
    record: dict[str, Any] = json.loads(text)
    return record


def test_headers_are_those_of_the_standard_library() -> None:
    for name, size in (("000000001.jpg", 0), ("x.json", 511), ("000000001.jpg", 8**11 - 1)):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o444, 0
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_members_stand_in_order_and_the_tables_point_at_them(tmp_path: Path, jpeg: Jpeg) -> None:
    images = {f"{'ab'[number % 2]}/{number}.jpg": jpeg(number) for number in range(5)}
    task = planned(tmp_path, images, number=1, shard_samples=3)
    write_shard(task)
    raw = (tmp_path / "out/train/train-000001.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw), format=tarfile.USTAR_FORMAT) as tar:
        members = tar.getmembers()
        payloads = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    keys = ("000000003", "000000004")
    assert [member.name for member in members] == [f"{key}.{part}" for key in keys for part in ("cls", "jpg", "json")]
    assert {(m.uid, m.gid, m.mtime, m.mode, m.type) for m in members} == {(0, 0, 0, 0o444, tarfile.REGTYPE)}
    for label, image, text in (payloads[:3], payloads[3:]):
        sample = json.loads(text)
        assert images[sample["source"]] == image
        assert sample["sha256"] == hashlib.sha256(image).hexdigest()
        assert label == (b"0" if sample["source"].startswith("a/") else b"1")
    table = np.fromfile(tmp_path / "out/.mpp/train/train-000001.members", MEMBER)
    assert table["offset"].tolist() == [member.offset_data for member in members]
    assert table["size"].tolist() == [member.size for member in members]
    assert table["crc32"].tolist() == [zlib.crc32(payload) for payload in payloads]
    index = np.fromfile(tmp_path / "out/train/train-000001.tar.idx", "<u8").tolist()
    assert index[:2] == [members[0].offset, members[3].offset]
    assert index[2] == members[-1].offset_data + 512 and len(raw) % 10_240 == 0


def test_the_record_counts_what_was_found(tmp_path: Path, jpeg: Jpeg) -> None:
    images = {f"{'ab'[number % 2]}/{number}.jpg": jpeg(number) for number in range(3)}
    task = planned(tmp_path, images | {"a/empty.jpg": b"", "b/gone.jpg": b"x", "b/page.jpg": b"<html>"})
    (tmp_path / "source/b/gone.jpg").unlink()
    returned, record = write_shard(task), record_of(task)
    assert (record["listed"], record["samples"], record["refused"]) == (6, 3, 3)
    assert {(source, reason) for source, reason, _, _ in record["refusals"]} == {
        ("a/empty.jpg", "empty"),
        ("b/gone.jpg", "unreadable"),
        ("b/page.jpg", "not_image"),
    }
    assert record["formats"] == {"JPEG": 3} and record["modes"] == {"RGB": 3} and record["notes"] == {"passed": 3}
    assert record["labels"] == {"0": 2, "1": 1}
    raw = (tmp_path / "out" / NAME).read_bytes()
    assert (record["bytes"], record["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert returned == {name: value for name, value in record.items() if name != "refusals"}


def test_a_shard_of_which_every_image_is_refused_has_a_record_and_no_tar(tmp_path: Path) -> None:
    task = planned(tmp_path, {"1.jpg": b"no"})
    assert write_shard(task)["refused"] == 1
    assert (record_of(task)["samples"], record_of(task)["bytes"]) == (0, 0)
    assert not list(tmp_path.glob("out/train/*"))


def test_a_task_done_twice_is_done_once_and_a_task_done_again_gives_the_same_bytes(tmp_path: Path, jpeg: Jpeg) -> None:
    task, tar = planned(tmp_path, {"1.jpg": jpeg(1), "2.png": jpeg(2), "3.jpg": b""}), tmp_path / "out" / NAME
    first, raw = write_shard(task), tar.read_bytes()
    os.utime(tar, (1, 1))
    assert write_shard(task) == first and tar.stat().st_mtime == 1
    (tmp_path / "out/.mpp/train/train-000000.json").unlink()
    assert write_shard(task) == first and tar.stat().st_mtime > 1
    assert tar.read_bytes() == raw


def test_the_record_comes_last(tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    task, real, done = planned(tmp_path, {"1.jpg": jpeg(1)}), os.replace, list[str]()

    def power_cut(source: Path, target: Path) -> None:
        if len(done) == cut:
            raise KeyboardInterrupt
        real(source, target)
        done.append(target.name)

    monkeypatch.setattr(os, "replace", power_cut)
    for cut in range(4):
        done.clear()
        for path in tmp_path.glob("out/train/*"):
            path.unlink()
        for path in tmp_path.glob("out/.mpp/train/*"):
            path.unlink()
        with pytest.raises(KeyboardInterrupt):
            write_shard(task)
        names = ["train-000000.tar", "train-000000.tar.idx", "train-000000.members"]
        assert done == names[:cut]
        assert not (tmp_path / "out/.mpp/train/train-000000.json").exists()


def test_a_full_disk_is_one_message_and_leaves_no_partial_file(tmp_path: Path, jpeg: Jpeg) -> None:
    task = planned(tmp_path, {"1.jpg": jpeg(0) * 9})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(DiskError, match=r"train-000000\.tar: cannot write"):
            write_shard(task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    note = tmp_path / "out/.mpp/failed/train-000000.txt"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {note}
    assert "cannot write" in note.read_text()
    write_shard(task)
    assert not note.exists()


@given(st.text(max_size=20).map(printable), st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)))
def test_the_json_is_written_as_the_standard_library_does(source: str, size: tuple[int, int]) -> None:
    image = Accepted(b"", size, (7, 8), ("mode_I;16", "encoded_jpg"), "PNG", "I;16")
    fields = {"key": "000000001", "source": source, "sha256": "f" * 64, "width": size[0], "height": size[1]}
    fields |= {"original_width": 7, "original_height": 8, "transform": "mode_I;16,encoded_jpg"}
    members = sample_members("000000001", 3, source, image, "f" * 64, "jpg")
    assert members == {"cls": b"3", "jpg": b"", "json": json.dumps(fields, ensure_ascii=False).encode()}
    assert list(members) == ["cls", "jpg", "json"]


@pytest.mark.parametrize("letter", ["a", "ü", "\n", "日"])
def test_the_json_stays_below_512_bytes_and_keeps_the_end_of_the_source(letter: str) -> None:
    image = Accepted(b"", (10**5, 10**5), (10**5, 10**5), ("alpha_RGBA", "upright", "resized", "encoded_jpg"), "", "")
    encoded = sample_members("000000000", None, letter * 3000 + "/name.jpg", image, "f" * 64, "jpg")["json"]
    assert 400 < len(encoded) < 512
    assert json.loads(encoded)["source"].endswith("/name.jpg")
