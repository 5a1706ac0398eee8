"""Every set of a mixture has its share of every cycle, gives each sample once an epoch, the same for all ranks."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.errors import ConfigError, DataError
from mpp.shards.shardset import ShardRecord, ShardSet, fingerprint
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.mixture import CYCLE, Draw, MixedOrder, Mixture, Part, as_mixture, mixed, open_mixture
from mpp.stream.reader import ShardReader
from mpp.stream.views import ViewConfig, eval_view

SIZES = ((30, 1, 0, 19), (5,), (200,) * 20)  # of the shards of three sets
WEIGHTS = (5.0, 1.0, 2.0)
BATCH = 64


def described(name: str, sizes: Sequence[int], classes: tuple[str, ...] | None = ("a", "b")) -> ShardSet:
    """Describe a set of shards of these numbers of samples, without any tar."""
    records = [
        ShardRecord(f"{name}-{shard}.tar", size, 10_240, f"{shard:064x}", "", 0, ("cls", "jpg"))
        for shard, size in enumerate(sizes)
    ]
    return ShardSet(f"/data/{name}", "train", tuple(records), classes, fingerprint(records))


@pytest.fixture
def mixture() -> Mixture:
    """Sets of 50, 5 and 4000 samples by the weights 5, 1 and 2."""
    return mixed([described(name, sizes) for name, sizes in zip("abc", SIZES, strict=True)], WEIGHTS)


def owners(mixture: Mixture, draw: Draw) -> np.ndarray:
    """Return the number of the set of each sample."""
    return np.searchsorted(np.cumsum([one.samples for one in mixture.sets]), draw.ids, side="right")


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((1, 1), [2048, 2048]),
        ((4, 2, 1, 1), [2048, 1024, 512, 512]),
        ((0.3, 0.5), [1536, 2560]),
        ((1,) * 3, [1366, 1365, 1365]),
        ((1, 1e-12), [4095, 1]),
        ((1e-12, 1e9, 1e-12), [1, 4094, 1]),
        ((1, *[1 / 8192] * 100), [3996, *[1] * 100]),
    ],
)
def test_shares_are_those_of_the_weights_and_the_smallest_has_a_place(
    weights: tuple[float, ...], shares: list[int]
) -> None:
    sets = [described(str(number), [9]) for number in range(len(weights))]
    assert mixed(sets, weights).shares == shares


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40))
def test_shares_fill_a_cycle_and_none_is_a_place_from_its_weight(weights: list[float]) -> None:
    shares = mixed([described(str(number), [9]) for number in range(len(weights))], weights).shares
    exact = np.array(weights) / sum(weights) * CYCLE
    assert sum(shares) == CYCLE and min(shares) >= 1
    if exact.min() >= 1:
        assert np.abs(np.array(shares) - exact).max() < 1


def test_over_every_cycle_the_shares_are_exact_and_within_it_mixed(mixture: Mixture) -> None:
    order = mixture.order(3, BATCH)
    cycles = []
    for cycle in (0, 1, 77):
        first = cycle * CYCLE // BATCH
        owned = owners(mixture, order.draw(range(first, first + CYCLE // BATCH), 0, 1))
        assert np.bincount(owned).tolist() == mixture.shares == [2560, 512, 1024]
        in_batches = np.stack([np.bincount(batch, minlength=3) for batch in owned.reshape(-1, BATCH)])
        # of 64 places 40, 8 and 16 are expected; drawn by chance their deviations would be 3.9, 2.6 and 3.5
        assert np.abs(in_batches - [40, 8, 16]).max() < 20 and in_batches.std(axis=0).min() > 1
        cycles.append(tuple(owned))
    assert len(set(cycles)) == 3


def test_every_set_gives_each_sample_once_in_each_of_its_own_epochs(mixture: Mixture) -> None:
    order = mixture.order(3, BATCH)
    draw = order.draw(range(3 * CYCLE // BATCH), 0, 1)
    owned, first = owners(mixture, draw), 0
    for owner, one in enumerate(mixture.sets):
        ids, epochs = draw.ids[owned == owner] - first, draw.epochs[owned == owner]
        read = 3 * mixture.shares[owner]
        expected = {epoch: min(one.samples, read - epoch * one.samples) for epoch in range(-(-read // one.samples))}
        assert Counter(epochs.tolist()) == expected
        assert len(set(zip(ids.tolist(), epochs.tolist(), strict=True))) == read
        assert ids.min() >= 0 and ids.max() < one.samples
        first += one.samples


def test_epochs_of_a_set_have_orders_of_their_own(mixture: Mixture) -> None:
    draw = mixture.order(3, BATCH).draw(range(CYCLE // BATCH), 0, 1)
    small = owners(mixture, draw) == 0
    orders = {tuple(draw.ids[small & (draw.epochs == epoch)]) for epoch in range(50)}
    assert len(orders) == 50


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 130), (61, 67), (129, 200)])
def test_what_is_drawn_at_once_is_what_is_drawn_step_by_step_from_anywhere(
    mixture: Mixture, start: int, stop: int
) -> None:
    at_once = mixture.order(3, BATCH).draw(range(start, stop), 1, 2)
    singly = [mixture.order(3, BATCH).draw(range(step, step + 1), 1, 2) for step in range(start, stop)]
    assert at_once.ids.tolist() == np.concatenate([one.ids for one in singly]).tolist()
    assert at_once.epochs.tolist() == np.concatenate([one.epochs for one in singly]).tolist()


@pytest.mark.parametrize("world", [2, 4, 16, 64])
def test_every_world_size_reads_the_same_global_batches(mixture: Mixture, world: int) -> None:
    order = mixture.order(3, BATCH)
    alone = order.draw(range(60, 70), 0, 1)
    ranks = [order.draw(range(60, 70), rank, world) for rank in range(world)]
    for together, expected in zip(zip(*ranks, strict=True), alone, strict=True):
        assert np.stack(together, axis=1).reshape(-1).tolist() == expected.tolist()


def test_classes_are_those_that_all_sets_have() -> None:
    some, same, other = described("a", [9]), described("b", [9]), described("c", [9], ("x", "y", "z"))
    assert mixed([some, same], [1, 1]).classes == ("a", "b")
    mixed([some, same], [1, 1]).require_labels()
    assert mixed([some, other], [1, 1]).classes is None
    with pytest.raises(DataError, match=r"different classes \(/data/a: 2, /data/c: 3\)"):
        mixed([some, other], [1, 1]).require_labels()
    bare = described("d", [9], None)
    assert mixed([some, bare], [1, 1]).classes is None and as_mixture(bare).classes is None
    with pytest.raises(DataError, match="/data/d: the split train carries no labels"):
        mixed([some, bare], [1, 1]).require_labels()


def test_a_large_set_is_fetched_ahead_beside_a_small_one_from_the_start() -> None:
    large, small = described("large", [8773] * 146), described("small", [5000] * 20)
    order = mixed([large, small], [1, 1]).order(0, 1024)
    first = [shard for shard, _ in islice(order.needs(0), 60)]
    assert sum(shard < 146 for shard in first) > 10


def test_impossible_mixtures_are_refused(mixture: Mixture) -> None:
    with pytest.raises(ConfigError, match="/data/a and /data/a: the same shards twice"):
        mixed([mixture.sets[0], mixture.sets[1], mixture.sets[0]], WEIGHTS)
    for count, message in ((0, "a mixture of no sets"), (CYCLE // 4 + 1, "a mixture of 1025 sets, at most 1024")):
        with pytest.raises(ConfigError, match=message):
            mixed([described(str(number), [9]) for number in range(count)], [1.0] * count)
    with pytest.raises(DataError, match="part 1 of the mixture has no samples"):
        mixed([mixture.sets[0], described("none", [0, 0])], [1, 1]).order(0, 8)
    with pytest.raises(DataError, match="4055 samples do not fill one global batch of 4056"):
        mixture.order(0, 4056)


def test_secrets_of_addresses_are_not_shown() -> None:
    shards = described("a", [9])
    secret = ShardSet("https://me:sesame@host/a", "train", shards.shards, shards.classes, shards.fingerprint)
    with pytest.raises(ConfigError, match=r"https://host/a.*twice") as caught:
        mixed([secret, secret], [1, 1])
    other = described("b", [9], ("x",))
    with pytest.raises(DataError, match=r"https://host/a: 2") as also:
        mixed([secret, other], [1, 1]).require_labels()
    assert "sesame" not in str(caught.value) + str(also.value)


def test_the_fingerprint_follows_from_the_sets_their_order_and_weights(mixture: Mixture) -> None:
    a, b, c = mixture.sets
    prints = [
        mixed(sets, weights).fingerprint
        for sets, weights in (
            ([a, b, c], WEIGHTS),
            ([a, b, c], (5, 1, 3)),
            ([b, a, c], (1, 5, 2)),
            ([a, b], (5, 1)),
            ([a], (1,)),
        )
    ]
    assert len(set(prints)) == 5
    assert mixed([a, b, c], (10, 2, 4)).fingerprint == prints[0] and as_mixture(a).fingerprint == a.fingerprint


def test_a_set_of_one_is_read_by_its_own_order_and_several_without_end(mixture: Mixture) -> None:
    assert not isinstance(as_mixture(mixture.sets[0]).order(0, 8), MixedOrder)
    assert mixture.samples == 4055 and mixture.order(0, BATCH).steps_per_epoch == 4055 // BATCH
    assert as_mixture(mixture) is mixture


def test_parts_name_their_shards_splits_and_weights(tiny_shards: Path, bare_tiny_shards: Path) -> None:
    parts = [Part(str(tiny_shards), 2.0), Part(str(bare_tiny_shards), split="test")]
    mixture = open_mixture(parts, "train")
    assert [(one.root, one.split, one.samples) for one in mixture.sets] == [
        (str(tiny_shards), "train", 60),
        (str(bare_tiny_shards), "test", 31),
    ]
    assert mixture.weights == (2.0, 1.0) and not mixture.remote
    assert open_mixture(str(tiny_shards), "test").samples == 31


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"greater than 0|finite number"):
        Part("somewhere", weight)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_over_two_sets_gives_their_images_labels_and_epochs(
    uneven: ShardSet, tmp_path: Path, make_tars: Callable[..., Path], index: Callable[..., ShardSet], world: int
) -> None:
    small = index(make_tars(tmp_path / "tars", [3, 9], 500), tmp_path / "index")
    mixture, view = mixed([uneven, small], [3, 1]), ViewConfig(crop="none", flip=False)
    readers, seen = (ShardReader(uneven), ShardReader(small)), Counter[int]()
    for rank in range(world):
        stream = TrainStream(
            mixture,
            view,
            (8, 8),
            seed=1,
            global_batch=16,
            micro_batch=4,
            rank=rank,
            world=world,
            start_step=9,
            settings=StreamConfig(workers=0),
        )
        batches = list(islice(stream, 10 * 4 // world))
        draw = mixture.order(1, 16).draw(range(9, 19), rank, world)
        count = 4 // world  # micro-batches of a step, over which its samples are dealt out in turn
        for found, drawn in (
            ([batch.ids for batch in batches], draw.ids),
            ([batch.epochs for batch in batches], draw.epochs),
        ):
            dealt = [step[first::count] for step in drawn.reshape(10, -1) for first in range(count)]
            assert torch.stack(found).tolist() == np.stack(dealt).tolist()
        for batch in batches:
            assert batch.labels is not None
            for image, label, sample_id in zip(batch.images, batch.labels, batch.ids.tolist(), strict=True):
                owner = int(sample_id >= uneven.samples)
                sample = readers[owner].read(sample_id - owner * uneven.samples)
                assert np.array_equal(image.numpy(), eval_view(sample.image, view, (8, 8)))
                assert label == sample.label
                seen[owner] += 1
    assert seen.total() == 160 and 20 < seen[1] < 60
