"""Verifying finds every flipped bit and names its shard."""

import json
from pathlib import Path

import numpy as np
import pytest

from mpp.shards.shardset import open_shards, read_members
from mpp.shards.verification import verify


def test_verify_is_silent_about_an_intact_set(root: Path) -> None:
    for full in (False, True):
        report = verify(root, full)
        assert (report.shards, report.samples, report.problems) == (3, 23, ())


@pytest.mark.parametrize("where", ["header", "cls", "jpg", "json", "end"])
def test_verify_finds_one_flipped_bit_anywhere(root: Path, where: str) -> None:
    shards = open_shards(root, "train")
    path = root / shards.shards[0].name
    table = read_members(shards, 0)
    column = {"header": 0, "cls": 0, "jpg": 1, "json": 2, "end": 2}[where]
    offset = int(table["offset"][7, column])
    position = {"header": offset - 510, "end": path.stat().st_size - 1}.get(where, offset)
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    assert verify(root, full=False).problems == ()
    problems = verify(root, full=True).problems
    assert problems[-1] == "train/train-000000.tar: sha256 differs from its record"
    payload_hit = where in ("cls", "jpg", "json")
    assert (
        f"train/train-000000.tar: sample 7 (key 000000010): {where} differs from its record" in problems
    ) == payload_hit


def test_verify_finds_a_tar_that_nobody_listed(root: Path) -> None:
    (root / "train/train-000002.tar").write_bytes(b"")
    assert verify(root, full=False).problems == ("train/train-000002.tar: not in index.json",)


def test_verify_finds_records_that_disagree(root: Path) -> None:
    path = root / ".mpp/train/train-000000.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"samples": 9}))
    assert verify(root, full=False).problems == ("train/train-000000.tar: commit record and index.json differ",)
    path.write_text("{")
    assert "commit record cannot be read" in verify(root, full=False).problems[0]


def test_verify_finds_an_image_that_was_damaged_before_it_was_hashed(root: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    entry = index["shardlist"][0]
    path = root / entry["url"]
    members = root / ".mpp/test/test-000000.members"
    table = np.fromfile(members, np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])).reshape(3, 3)
    table["size"][1, 1] -= 100
    members.write_bytes(table.tobytes())
    problems = verify(root, full=True).problems
    assert path.exists() and problems == (
        "test/test-000000.tar: sample 1 (key 000000001): jpg differs from its record",
    )


def test_a_hole_of_zeros_keeps_the_size_and_is_found_by_the_hash(root: Path) -> None:
    path = root / "train/train-000001.tar"
    raw = bytearray(path.read_bytes())
    offset = int(read_members(open_shards(root, "train"), 1)["offset"][3, 1])
    raw[offset : offset + 40] = bytes(40)
    path.write_bytes(raw)
    assert verify(root, full=False).problems == ()
    problems = verify(root, full=True).problems
    assert "train/train-000001.tar: sha256 differs from its record" in problems
    assert any("sample 3" in problem for problem in problems)


def test_two_shards_of_one_name_are_found(root: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    index["shardlist"].append(index["shardlist"][0])
    (root / "index.json").write_text(json.dumps(index))
    assert "1 shard names occur twice" in verify(root, full=False).problems
