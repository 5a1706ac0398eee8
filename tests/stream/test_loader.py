"""The same batches for every world size, number of workers and restart; evaluation sees each image once."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpp.config import resolve
from mpp.errors import ConfigError, DataError
from mpp.shards.shardset import ShardSet
from mpp.stream.batches import PADDING, Batch
from mpp.stream.loader import StreamConfig, TrainStream, evaluation_batches
from mpp.stream.mixture import Mixture
from mpp.stream.reader import Sample, ShardReader
from mpp.stream.views import ViewConfig, eval_view

SIZE = (12, 16)
VIEW = ViewConfig()


STREAM = {field.name for field in fields(StreamConfig)}


def open_stream(shards: ShardSet | Mixture, **settings: Any) -> TrainStream:
    stream = {"workers": 0} | {name: value for name, value in settings.items() if name in STREAM}
    rest = {"seed": 5, "global_batch": 8, "micro_batch": 4} | {k: v for k, v in settings.items() if k not in STREAM}
    return TrainStream(shards, VIEW, SIZE, **rest, settings=resolve(StreamConfig, stream))


def equal(some: Batch, other: Batch) -> bool:
    assert some.labels is not None and other.labels is not None
    tensors = zip((some.images, some.labels, some.ids), (other.images, other.labels, other.ids), strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and torch.equal(some.epochs, other.epochs)


def take(stream: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(stream, count))


def test_an_epoch_sees_each_sample_once_at_most_with_its_own_label(shards: ShardSet) -> None:
    stream = open_stream(shards)
    labels = ShardReader(shards).labels()
    batches = take(stream, 2 * stream.steps_per_epoch * 2)
    assert stream.steps_per_epoch == 37 // 8
    assert [batch.epochs.tolist() for batch in batches] == [[0] * 4] * 8 + [[1] * 4] * 8
    for epoch in (batches[:8], batches[8:]):
        ids = torch.cat([batch.ids for batch in epoch])
        assert len(ids.unique()) == len(ids) == 32
    for batch in batches:
        assert batch.images.shape == (4, 3, *SIZE) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous() and batch.labels is not None
        assert batch.labels.tolist() == labels[batch.ids].tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_a_stream_begun_later_is_the_tail_of_one_begun_at_zero(shards: ShardSet, start: int) -> None:
    whole = take(open_stream(shards), 2 * (start + 5))
    tail = take(open_stream(shards, start_step=start), 10)
    assert all(equal(a, b) for a, b in zip(tail, whole[2 * start :], strict=True))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_together_read_the_batches_of_one_process(shards: ShardSet, world: int) -> None:
    alone = take(open_stream(shards, micro_batch=8), 6)
    ranks = [take(open_stream(shards, micro_batch=8 // world, rank=rank, world=world), 6) for rank in range(world)]
    for step, batch in enumerate(alone):
        for name in ("images", "ids"):
            together = torch.stack([getattr(ranks[rank][step], name) for rank in range(world)], dim=1)
            assert torch.equal(together.flatten(0, 1), getattr(batch, name))


def test_workers_change_nothing_and_end_with_the_stream(shards: ShardSet) -> None:
    generator = torch.random.get_rng_state()
    stream = open_stream(shards, workers=2)
    batches = take(stream, 20)
    assert all(equal(a, b) for a, b in zip(batches, take(open_stream(shards), 20), strict=True))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert stream.clock.lap(1.0)[0]["data_wait_seconds"] > 0
    stream.close()
    assert multiprocessing.active_children() == []


def test_the_state_names_epoch_samples_and_shards(shards: ShardSet) -> None:
    state = open_stream(shards, start_step=6).state(9)
    assert (state.epoch, state.samples_seen, state.fingerprint) == (2, 72, shards.fingerprint)


def test_a_subset_is_all_that_is_seen(shards: ShardSet) -> None:
    subset = np.array([30, 2, 17, 5, 8, 11, 36, 20, 21])
    stream = open_stream(shards, subset=subset)
    assert stream.steps_per_epoch == 1
    seen = [set(torch.cat([batch.ids for batch in take(stream, 2)]).tolist()) for _ in range(6)]
    assert all(len(ids) == 8 and ids < set(subset.tolist()) for ids in seen)
    assert set.union(*seen) == set(subset.tolist())


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_evaluation_covers_every_image_once_in_equal_batches(shards: ShardSet, world: int, batch: int) -> None:
    view = ViewConfig(crop_fraction=1.0)
    ranks = [list(evaluation_batches(shards, view, SIZE, batch=batch, rank=r, world=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len({len(one.ids) for batches in ranks for one in batches}) == 1
    reader, seen = ShardReader(shards), []
    for one in (one for batches in ranks for one in batches):
        assert one.labels is not None and len(one.ids) <= batch
        for row, sample_id in enumerate(one.ids.tolist()):
            if sample_id == PADDING:
                assert one.labels[row] == PADDING and not one.images[row].any()
            else:
                seen.append(sample_id)
                image, label = reader.read(sample_id)
                assert one.labels[row] == label
                assert np.array_equal(one.images[row].numpy(), eval_view(image, view, SIZE))
    assert sorted(seen) == list(range(37))


def test_evaluation_of_a_subset_with_workers_keeps_its_order(shards: ShardSet) -> None:
    subset = np.array([9, 3, 33, 12, 1])
    batches = list(evaluation_batches(shards, VIEW, SIZE, batch=2, settings=StreamConfig(workers=2), subset=subset))
    assert [batch.ids.tolist() for batch in batches] == [[9, 3], [33, 12], [1, PADDING]]


def test_a_set_without_labels_streams_images_alone(bare_shards: ShardSet) -> None:
    assert take(open_stream(bare_shards), 1)[0].labels is None


def test_streams_that_are_dropped_give_their_descriptors_back(shards: ShardSet) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(5):
        stream = open_stream(shards)
        next(stream)
        stream.close()
        list(evaluation_batches(shards, VIEW, SIZE, batch=8))
    del stream
    gc.collect()
    assert open_files() <= before + 1


def test_batches_that_do_not_divide_or_fill_are_refused(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="use 1, 2, 4, 8, 16"):
        open_stream(shards, global_batch=16, world=3)
    with pytest.raises(DataError, match="37 samples do not fill one global batch of 64"):
        open_stream(shards, global_batch=64)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named(tmp_path: Path, make_set: Callable[..., ShardSet], workers: int) -> None:
    shards = make_set(tmp_path, "none", images=4)
    tar = Path(shards.root, shards.shards[0].name)
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\xfe"))
    with pytest.raises(DataError, match=r"^train/train-000000.tar:\d \(key \d+\): the jpg member is damaged"):
        take(open_stream(shards, global_batch=4, workers=workers), 1)


def test_an_image_that_cannot_be_decoded_is_named(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Sample(b"GIF89a, or so it says", 0)
    monkeypatch.setattr(ShardReader, "read_all", lambda self, ids: [broken] * len(ids))
    with pytest.raises(DataError, match=r"^train/train-00000\d.tar:\d \(key \d+\): the image cannot be decoded: Unid"):
        take(open_stream(shards), 1)
