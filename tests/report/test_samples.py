"""The sample is spread evenly, says what the tars say, is bounded, and notices damage."""

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp import shard
from mpp.errors import DataError
from mpp.report import samples
from mpp.report.samples import picture, sample_split, spread
from mpp.shards.shardset import ShardSet, open_shards


@pytest.fixture
def small(tmp_path: Path) -> ShardSet:
    """Four images of one colour each, 40 x 20, in one shard."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 20), (60 * number, 100, 50)).save(tmp_path / f"images/{number}.png")
    assert shard.main([str(tmp_path / "images"), str(tmp_path / "set"), "workers=0"]) == 0
    return open_shards(tmp_path / "set", "train")


@given(st.integers(0, 10**12), st.integers(2, 300))
def test_a_spread_goes_from_the_first_to_the_last_in_even_steps(count: int, most: int) -> None:
    numbers = spread(count, most)
    assert len(numbers) == min(count, most)
    if count:
        assert (numbers[0], numbers[-1]) == (0, count - 1)
    steps = np.diff(numbers)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_all_samples_come_once_and_as_the_tars_have_them(tiny_shards: Path) -> None:
    shards = open_shards(tiny_shards, "train")
    stored = {}
    for record in shards.shards:
        with tarfile.open(tiny_shards / record.name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, payload in members.items():
            if name.endswith(".json"):
                stored[name.removesuffix(".json")] = (json.loads(payload), int(members[name[:-4] + "cls"]))
    found = list(sample_split(shards, 1000))
    assert {sample.fields["key"]: (sample.fields, sample.label) for sample in found} == stored
    assert len(found) == shards.samples == 60
    assert {(sample.split, sample.size, sample.found) for sample in found} == {("train", (8, 8), (8, 8))}


def test_few_shards_stand_for_many(tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_SHARDS", 3)
    found = list(sample_split(open_shards(tiny_shards, "train"), 12))
    assert len(found) == 12
    assert [tar.name for tar in dict.fromkeys(sample.tar for sample in found)] == [
        f"train-{number:06d}.tar" for number in (0, 2, 5)
    ]


def test_a_picture_is_a_small_image_of_the_same_colour_and_shape(small: ShardSet) -> None:
    for sample in sample_split(small, 4):
        address = picture(sample, 10)
        assert address is not None
        kind, _, data = address.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pixels = np.asarray(image, np.float64)
        assert kind == "data:image/jpeg" and pixels.shape == (5, 10, 3)
        number = int(Path(sample.fields["source"]).stem)
        assert np.abs(pixels - (60 * number, 100, 50)).max() <= 4


def test_an_image_beyond_the_limit_is_not_decoded(small: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = sample_split(small, 1)
    monkeypatch.setattr(samples, "LARGEST", 40 * 20 - 1)
    assert picture(sample, 10) is None


@pytest.mark.parametrize("member", ["json", "png"])
def test_a_flipped_bit_is_an_error_that_names_the_tar(small: ShardSet, member: str) -> None:
    tar = Path(small.root, small.shards[0].name)
    raw = bytearray(tar.read_bytes())
    with tarfile.open(tar) as opened:
        first = next(found for found in opened if found.name.endswith(member))
    raw[first.offset_data + 20] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(DataError, match=r"train-000000\.tar: a member is damaged[^!]*mpp verify"):
        for sample in sample_split(small, 4):
            picture(sample, 10)
