"""Images that two sets share are found, whatever wrote the sets, and no others."""

import io
import json
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mpp.errors import DataError
from mpp.shards import overlap
from mpp.shards.indexing import index_tars, plan_index
from mpp.shards.options import ShardOptions
from mpp.shards.overlap import Shared, shared_images
from mpp.shards.sharding import shard_corpus
from mpp.shards.shardset import ShardSet, open_shards
from mpp.stream.reader import ShardReader

Jpeg = Callable[[int], bytes]


def tar(path: Path, images: Sequence[bytes], label: str = "") -> Path:
    """Write images as others write tars: a sample has an image, and with ``label`` a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as target:
        for number, image in enumerate(images):
            for extension, payload in [("jpg", image), *([("cls", label.encode())] if label else [])]:
                info = tarfile.TarInfo(f"{path.stem}/{number:03d}.{extension}")
                info.size = len(payload)
                target.addfile(info, io.BytesIO(payload))
    return path


def indexed(folder: Path, *images: Sequence[bytes], label: str = "") -> ShardSet:
    for number, some in enumerate(images):
        tar(folder / "tars" / f"{folder.name}-{number}.tar", some, label)
    index_tars(plan_index(str(folder / "tars")), folder / "index", 0)
    return open_shards(folder / "index", "train")


def sharded(folder: Path, images: Sequence[bytes], **options: object) -> ShardSet:
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / "images" / f"{number:03d}.jpg").write_bytes(image)
    given = {"source": str(folder / "images"), "out": str(folder / "set"), "shard_samples": 4, "workers": 0}
    shard_corpus(ShardOptions(**given, **options))  # type: ignore[arg-type]
    return open_shards(folder / "set", "train")


def source(shards: ShardSet, example: str) -> str:
    """Return the file that a sample says it was made of."""
    name, _, member = example.partition(": ")
    with tarfile.open(Path(shards.root) / name) as opened:
        description = opened.extractfile(member.replace(".jpg", ".json"))
        assert description is not None
        return str(json.load(description)["source"]).rpartition("/")[2]


def forged(payload: bytes, crc32: int) -> bytes:
    """Return the payload with four more bytes, so that its CRC32 is this one: the CRC is affine in their bits."""
    zero = zlib.crc32(payload + bytes(4))
    columns = [zlib.crc32(payload + (1 << bit).to_bytes(4, "little")) ^ zero for bit in range(32)]
    rows, wanted, answer = list(zip(columns, (1 << bit for bit in range(32)), strict=True)), zero ^ crc32, 0
    for bit in reversed(range(32)):
        pivot = next(row for row in rows if row[0] >> bit & 1)
        rows = [(a ^ pivot[0], b ^ pivot[1]) if a >> bit & 1 else (a, b) for a, b in rows if (a, b) != pivot]
        if wanted >> bit & 1:
            wanted, answer = wanted ^ pivot[0], answer ^ pivot[1]
    return payload + answer.to_bytes(4, "little")


def test_shared_images_of_tars_of_others_are_counted_and_named(tmp_path: Path, jpeg: Jpeg) -> None:
    images = [jpeg(number) for number in range(12)]
    one = indexed(tmp_path / "one", images[:3], images[3:6])
    other = indexed(tmp_path / "other", images[9:], [images[4], images[8]], [images[1], images[4]], label="3")
    found = shared_images(one, other)
    assert found.count == 2
    assert [(first.rpartition("/tars/")[2], second.rpartition("/tars/")[2]) for first, second in found.examples] == [
        ("one-0.tar: one-0/001.jpg", "other-2.tar: other-2/000.jpg"),
        ("one-1.tar: one-1/001.jpg", "other-1.tar: other-1/000.jpg"),
    ]
    assert shared_images(other, one).count == 3  # one of them is there twice


def test_sets_without_a_common_image_share_none(tmp_path: Path, jpeg: Jpeg) -> None:
    images = [jpeg(number) for number in range(8)]
    one, other = indexed(tmp_path / "one", images[:4]), indexed(tmp_path / "other", images[4:])
    assert shared_images(one, other) == Shared(0, ())


def test_another_image_of_the_same_size_and_crc_is_not_shared(tmp_path: Path, jpeg: Jpeg) -> None:
    first, second = jpeg(0), jpeg(5)
    size = max(len(first), len(second)) + 8
    first = first.ljust(size, b"\0")
    second = forged(second.ljust(size - 4, b"\0"), zlib.crc32(first))
    assert (len(first), zlib.crc32(first)) == (len(second), zlib.crc32(second)) and first != second
    one, other = indexed(tmp_path / "one", [first, jpeg(1)]), indexed(tmp_path / "other", [second, jpeg(2)])
    assert shared_images(one, other) == Shared(0, ())
    both = indexed(tmp_path / "both", [second, first])
    found = shared_images(one, both)
    assert found.count == 1 and "both/001.jpg" not in found.examples[0][0]
    assert found.examples[0][1].endswith("both-0/001.jpg")


def test_images_made_of_the_same_bytes_in_different_ways_are_shared(tmp_path: Path, jpeg: Jpeg) -> None:
    images = [jpeg(number) for number in range(10)]
    one = sharded(tmp_path / "one", images[:6], resize=16)
    other = sharded(tmp_path / "other", images[4:])
    left, right = ({bytes(ShardReader(some).read(n).image) for n in range(6)} for some in (one, other))
    assert not left & right
    found = shared_images(one, other)
    assert found.count == 2
    sources = {(source(one, first), source(other, second)) for first, second in found.examples}
    assert sources == {("004.jpg", "000.jpg"), ("005.jpg", "001.jpg")}


def test_a_set_of_ours_and_tars_of_others_share_by_their_bytes(tmp_path: Path, jpeg: Jpeg) -> None:
    one = sharded(tmp_path / "one", [jpeg(number) for number in range(6)])
    kept = [bytes(ShardReader(one).read(number).image) for number in range(6)]
    assert shared_images(one, indexed(tmp_path / "other", [kept[5], jpeg(9), kept[0]])).count == 2


def test_two_splits_of_one_set_share_what_both_hold(tmp_path: Path, jpeg: Jpeg) -> None:
    for split, numbers in (("train", range(9)), ("test", range(7, 12))):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        for number in numbers:
            (tmp_path / "images" / split / "a" / f"{number}.jpg").write_bytes(jpeg(number))
    shard_corpus(ShardOptions(source=str(tmp_path / "images"), out=str(tmp_path / "set"), workers=0))
    train, test = (open_shards(tmp_path / "set", split) for split in ("train", "test"))
    assert shared_images(test, train).count == 2
    assert shared_images(test, test).count == 5


def test_a_damaged_candidate_is_an_error_that_names_it(tmp_path: Path, jpeg: Jpeg) -> None:
    one, other = indexed(tmp_path / "one", [jpeg(0)]), indexed(tmp_path / "other", [jpeg(0)])
    path = tmp_path / "other" / "tars" / "other-0.tar"
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"other-0.tar is damaged: CRC"):
        shared_images(one, other)


def test_tens_of_thousands_of_images_take_seconds_and_large_sets_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overlap, "LARGE", 60_000)
    random = np.random.default_rng(0)
    images = [random.bytes(64) for _ in range(30_000)]
    one = indexed(tmp_path / "one", images[:10_000])
    other = indexed(tmp_path / "other", images[8_000:20_000], images[18_000:], [images[3]])
    assert one.samples + other.samples == 34_001
    began = time.monotonic()
    assert shared_images(one, other).count == 2_001
    assert time.monotonic() - began < 60  # about one on two cores
    assert "comparing" not in capfd.readouterr().err
    monkeypatch.setattr(overlap, "LARGE", 34_001)
    assert shared_images(one, other).count == 2_001
    assert "comparing train with train: 24,001 of 24,001 images" in capfd.readouterr().err
