"""A bad sample gives way to its neighbour, loudly and on every rank alike; too many, or one in evaluation, end it."""

import multiprocessing
import os
import pickle
import re
import traceback
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpp.config import resolve
from mpp.errors import DataError, MppError
from mpp.shards.shardset import ShardSet, place, read_members, sidecar
from mpp.stream.augment import RandAugment
from mpp.stream.batches import PADDING, Batch, Batches, MadeBatch
from mpp.stream.loader import StreamConfig, TrainStream, evaluation_batches
from mpp.stream.mixture import Draw
from mpp.stream.reader import ShardReader
from mpp.stream.views import ViewConfig, train_view, view_draws

SIZE = (8, 8)
VIEW = ViewConfig()
SIZES = (10, 6, 4)  # samples of the shards
NO_IMAGE = b"\xff\xd8\xff, or so it says"

Make = Callable[..., ShardSet]


@pytest.fixture
def make(tmp_path: Path, make_tars: Callable[..., Path], index: Callable[..., ShardSet]) -> Make:
    """Return a function that makes a set of 20 samples in 3 shards, with some payloads that are none."""
    return lambda **instead: index(make_tars(tmp_path / "tars", SIZES, **instead), tmp_path / "index")


def batches(
    shards: ShardSet, count: int, threads: int = 1, seed: int | None = 5, replace: bool = True, **view: Any
) -> Batches:
    reader, views = ShardReader(shards), ViewConfig(**view)
    return Batches(reader, views, SIZE, count=count, slots=1, seed=seed, replace=replace, threads=threads)


def draw(ids: list[int], epoch: int = 3) -> Draw:
    return Draw(np.array(ids, np.int64), np.full(len(ids), epoch, np.int64))


def made(shards: ShardSet, ids: list[int], **settings: Any) -> MadeBatch:
    return checked(batches(shards, len(ids), **settings)[draw(ids)])


def checked(batch: MadeBatch | MppError) -> MadeBatch:
    assert isinstance(batch, MadeBatch)
    return batch


def images(batch: MadeBatch) -> torch.Tensor:
    assert batch.images.memory is not None
    return batch.images.memory


def open_stream(shards: ShardSet, most_bad: float, **settings: Any) -> TrainStream:
    workers = settings.pop("workers", 0)
    rest = {"seed": 5, "global_batch": 4, "micro_batch": 2} | settings
    stream = resolve(StreamConfig, {"workers": workers, "max_bad_fraction": most_bad})
    return TrainStream(shards, VIEW, SIZE, **rest, settings=stream)


def test_a_batch_holds_the_views_labels_and_ids_that_were_drawn_and_what_they_cost(make: Make) -> None:
    shards = make()
    reader, ids = ShardReader(shards), [13, 2, 19, 2]
    batch = made(shards, ids)
    for row, (sample_id, draws) in enumerate(zip(ids, view_draws(5, np.full(4, 3), np.array(ids)), strict=True)):
        sample = reader.read(sample_id)
        assert np.array_equal(images(batch)[row].numpy(), train_view(sample.image, VIEW, SIZE, draws))
        assert batch.labels is not None and batch.labels[row] == sample.label
    assert batch.ids.tolist() == ids and batch.epochs.tolist() == [3] * 4
    assert batch.cost.images == 4 and batch.cost.skipped == ()
    assert batch.cost.bytes >= sum(len(reader.read(sample_id).image) for sample_id in (13, 2, 19))
    assert batch.cost.read_seconds > 0 and batch.cost.view_seconds > 0


def test_padding_is_black_and_has_no_label(make: Make) -> None:
    batch = made(make(), [7, PADDING, 8, PADDING], seed=None)
    assert batch.labels is not None and batch.labels.tolist() == [1, PADDING, 2, PADDING]
    assert batch.ids.tolist() == [7, PADDING, 8, PADDING] and batch.cost.images == 2
    assert [bool(image.any()) for image in images(batch)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("bad", "instead"),
    [([4], 5), ([9], 0), ([9, 0, 1], 2), ([15], 10), ([11, 12, 13], 14), ([16, 17, 18], 19)],
)
@pytest.mark.parametrize("fault", ["flipped", "no image"])
def test_the_next_usable_sample_of_the_same_shard_takes_the_place(
    make: Make, flip: Callable[..., None], fault: str, bad: list[int], instead: int
) -> None:
    shards = make(instead=dict.fromkeys(bad, NO_IMAGE) if fault == "no image" else {})
    for sample_id in bad if fault == "flipped" else ():
        flip(shards, *ShardReader(shards).locate(sample_id))
    ids = [bad[0], 3, bad[0]]
    batch, other = made(shards, ids), made(shards, [instead, 3, instead])
    assert batch.ids.tolist() == [instead, 3, instead]
    assert torch.equal(images(batch), images(other))
    assert batch.labels is not None and other.labels is not None
    assert batch.labels.tolist() == other.labels.tolist()
    assert [skip[:2] for skip in batch.cost.skipped] == [(bad[0], instead)] * 2
    shard, row = ShardReader(shards).locate(bad[0])
    reason = "the jpg member is damaged: CRC" if fault == "flipped" else "the image cannot be decoded: "
    assert f"{shard:03d}.tar:{row} (key {bad[0]:04d}): {reason}" in batch.cost.skipped[0].reason


def test_a_bad_label_is_skipped_like_a_bad_image(make: Make, flip: Callable[..., None]) -> None:
    shards = make()
    flip(shards, 1, 2, "cls")
    batch = made(shards, [12])
    assert batch.ids.tolist() == [13] and "012): the cls member is damaged" in batch.cost.skipped[0].reason


def test_a_shard_in_which_no_neighbour_can_be_used_is_an_error_that_names_the_first(make: Make) -> None:
    shards = make(instead=dict.fromkeys(range(16, 20), NO_IMAGE))
    error = batches(shards, 2)[draw([3, 17])]
    assert isinstance(error, DataError) and "002.tar:1 (key 0017): the image cannot be decoded" in str(error)
    assert f"fix: mpp verify {shards.root} full=true" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "it comes out of a worker as it is"


@pytest.mark.parametrize("workers", [0, 1])
def test_training_says_what_it_skips_once_and_counts_it_every_time(
    make: Make, flip: Callable[..., None], capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    shards = make(instead={13: NO_IMAGE})
    flip(shards, 0, 4)
    stream = open_stream(shards, 0.1, workers=workers)
    seen = torch.stack([batch.ids for batch in islice(stream, 3 * 10)]).reshape(3, 20)
    stream.close()
    lines = sorted(line for line in capfd.readouterr().err.splitlines() if line.startswith("skipped: "))
    first, second = shards.shards[0].name, shards.shards[1].name
    assert len(lines) == 2
    assert lines[0].startswith(f"skipped: {first}:4 (key 0004): the jpg member is damaged: CRC ")
    assert lines[0].endswith("; sample 5 takes its place")
    assert lines[1].startswith(
        f"skipped: {second}:3 (key 0013): the image cannot be decoded: UnidentifiedImageError: it begins with b'\\xff"
    )
    assert lines[1].endswith("; sample 14 takes its place")
    assert stream.clock.lap(1.0)[1]["skipped"] == 6
    for ids in seen.tolist():
        assert sorted(ids) == sorted([*range(4), 5, *range(5, 13), 14, *range(14, 20)])


@pytest.mark.parametrize("world", [2, 4])
def test_every_number_of_ranks_skips_to_the_same_batches(make: Make, flip: Callable[..., None], world: int) -> None:
    shards = make(instead={13: NO_IMAGE, 14: NO_IMAGE})
    flip(shards, 0, 4)
    alone = list(islice(open_stream(shards, 0.9, micro_batch=4), 10))
    micro = 4 // world
    ranks = [
        list(islice(open_stream(shards, 0.9, micro_batch=micro, rank=rank, world=world), 10)) for rank in range(world)
    ]
    for step, batch in enumerate(alone):
        for name in ("images", "ids", "labels"):
            together = torch.stack([getattr(ranks[rank][step], name) for rank in range(world)], dim=1).flatten(0, 1)
            assert torch.equal(together, getattr(batch, name))
    assert not {4, 13, 14} & set(torch.cat([batch.ids for batch in alone]).tolist())


@pytest.mark.parametrize("workers", [0, 1])
def test_more_bad_samples_than_allowed_end_it(make: Make, capfd: pytest.CaptureFixture[str], workers: int) -> None:
    shards = make(instead={1: NO_IMAGE, 12: NO_IMAGE, 18: NO_IMAGE})
    stream = open_stream(shards, 0.1, workers=workers)  # 2 of 20
    with pytest.raises(DataError, match=r"\.tar:\d \(key 00\d\d\): the image cannot be decoded") as caught:
        list(islice(stream, 10))
    stream.close()
    assert "3 unusable of the samples read, at most 2 up to here" in str(caught.value)
    assert "fix: mpp verify SHARDS full=true; stream.max_bad_fraction" in str(caught.value)
    assert caught.value.exit_code == 3 and capfd.readouterr().err.count("skipped: ") == 2


def test_bad_samples_within_the_share_never_end_a_run_however_long(make: Make) -> None:
    shards = make(instead={1: NO_IMAGE, 12: NO_IMAGE, 18: NO_IMAGE})
    stream = open_stream(shards, 0.151, micro_batch=2, rank=1, world=2)  # 3 of 20, met by this rank in some epochs
    assert len(list(islice(stream, 40 * 5))) == 200
    assert stream.clock.lap(1.0)[1]["skipped"] > 20


def test_a_sample_outside_a_subset_never_takes_the_place_of_a_bad_one(make: Make) -> None:
    shards = make(instead={12: NO_IMAGE})
    with pytest.raises(DataError, match="cannot be decoded"):
        list(islice(open_stream(shards, 0.9, subset=np.array([2, 4, 12, 15])), 2))


def test_without_leave_the_first_bad_sample_ends_it(make: Make) -> None:
    with pytest.raises(DataError, match=r"001\.tar:2 \(key 0012\)(.|\n)*1 unusable of the samples read, at most 0"):
        list(islice(open_stream(make(instead={12: NO_IMAGE}), 0.0), 10))


@pytest.mark.parametrize("fault", ["flipped", "no image"])
def test_evaluation_never_skips(make: Make, flip: Callable[..., None], fault: str) -> None:
    shards = make(instead={12: NO_IMAGE} if fault == "no image" else {})
    if fault == "flipped":
        flip(shards, 1, 2)
    settings = resolve(StreamConfig, {"workers": 0, "max_bad_fraction": 0.9})
    stream = evaluation_batches(shards, VIEW, SIZE, batch=5, settings=settings)
    seen: list[Batch] = []
    with pytest.raises(DataError, match=r"001\.tar:2 \(key 0012\): the (jpg member is damaged|image cannot)"):
        seen.extend(stream)
    assert torch.cat([batch.ids for batch in seen]).tolist() == list(range(len(seen) * 5)) and len(seen) <= 2


@pytest.mark.parametrize("augment", [0, 2])
def test_threads_change_nothing(make: Make, flip: Callable[..., None], augment: int) -> None:
    shards = make(instead={13: NO_IMAGE})
    flip(shards, 0, 4)
    view = {"augment": RandAugment(num_ops=augment)}
    for ids in ([4, 13, 7, 19, 0, 1], list(range(20))):
        one, three = made(shards, ids, **view), made(shards, ids, threads=3, **view)
        assert torch.equal(images(one), images(three)) and one.ids.tolist() == three.ids.tolist()
        assert one.labels is not None and three.labels is not None and one.labels.tolist() == three.labels.tolist()
        assert one.cost.skipped == three.cost.skipped and len(one.cost.skipped) == 2


def test_a_dataset_that_has_worked_in_threads_can_be_sent_to_a_worker(make: Make) -> None:
    dataset = batches(make(), 2, threads=2)
    here = checked(dataset[draw([1, 2])])
    there = checked(pickle.loads(pickle.dumps(dataset))[draw([1, 2])])
    assert torch.equal(images(there), images(here))


def make_label_strange(shards: ShardSet, shard: int, row: int) -> None:
    """Make the label of a sample no number, with the right CRC in the table, as nobody indexes it."""
    table = read_members(shards, shard).copy()
    column = shards.shards[shard].members.index("cls")
    with open(shards.shards[shard].name, "r+b") as tar:
        os.pwrite(tar.fileno(), b"x", int(table["offset"][row, column]))
    table["crc32"][row, column] = zlib.crc32(b"x")
    Path(place(shards.root, sidecar(shards.shards[shard].name, "members"))).write_bytes(table.tobytes())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_that_nobody_expected_says_where_in_its_traceback(make: Make, workers: int) -> None:
    shards = make()
    make_label_strange(shards, 1, 2)
    stream = open_stream(shards, 0.5, workers=workers)
    with pytest.raises(ValueError, match="invalid literal for int") as caught:
        list(islice(stream, 10))
    told = "".join(traceback.format_exception(caught.value))
    assert re.search(r"in a batch that begins with /.*/00\d\.tar:\d+ \(key 00\d\d\)", told)
    assert "_sample" in told, "the traceback is that of the worker"
    assert multiprocessing.active_children() == []
