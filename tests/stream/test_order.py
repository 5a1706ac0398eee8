"""The order is a partition, the same for every number of processes, another every epoch, and found lazily."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.errors import ConfigError, DataError
from mpp.stream.mixture import CYCLE, MixedOrder, Order, SingleOrder
from mpp.stream.order import EpochOrder, Ints, check_divides, count_steps, rank_positions

GRID = {  # samples of shards
    "one shard": [19],
    "one sample": [1],
    "1 and 19": [1, 19],
    "empty ones": [0, 5, 0, 0, 19, 1, 0],
    "fewer than ranks": [40, 30],
    "seven uneven": [19, 1, 12, 7, 30, 3, 16],
    "two lanes": [(7 * number) % 23 for number in range(17)],
    "eight lanes": [1 + number % 2 for number in range(64)],
    "many": [20] * 200,
    "64 lanes": [4] * 600,
}
BATCHES = (1, 2, 12, 24)

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=70).filter(lambda sizes: sum(sizes) > 0)


def whole_epoch(order: EpochOrder, epoch: int) -> Ints:
    return order.ids(epoch, np.arange(order.num_samples))


@given(shard_sizes, st.integers(-(2**63), 2**63), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_sample_once(sizes: list[int], seed: int, epoch: int) -> None:
    order = EpochOrder(sizes, seed)
    assert sorted(whole_epoch(order, epoch)) == list(range(sum(sizes)))


@given(shard_sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_a_position_does_not_depend_on_what_was_read_before(sizes: list[int], data: st.DataObject) -> None:
    whole = whole_epoch(EpochOrder(sizes, 3), 5)
    some = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=20))
    fresh = EpochOrder(sizes, 3)
    fresh.ids(4, np.array(some, np.int64))
    assert fresh.ids(5, np.array(some, np.int64)).tolist() == whole[some].tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8, 12, 24])
def test_every_world_size_reads_the_same_global_batches(world: int) -> None:
    order = EpochOrder([7] * 40, seed=1)
    for step in range(count_steps(order.num_samples, 24)):
        ranks = [order.ids(2, rank_positions(range(step, step + 1), 24, rank, world)) for rank in range(world)]
        assert {len(ids) for ids in ranks} == {24 // world}
        together = np.stack(ranks, axis=1).reshape(-1)
        assert together.tolist() == whole_epoch(order, 2)[24 * step : 24 * (step + 1)].tolist()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(whole_epoch(EpochOrder([50, 50], seed), epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_one_shard_more_or_less_makes_no_sample_fixed_in_its_place() -> None:
    whole = np.stack([whole_epoch(EpochOrder([100] * 4, seed=0), epoch) for epoch in range(200)])
    # Uniform: mean 199.5, standard deviation of the mean of 200 draws 8.2; five of them are never reached.
    assert np.abs(whole.mean(axis=0) - 199.5).max() < 5 * 8.2


def test_lanes_are_a_power_of_two_of_whole_windows() -> None:
    lanes = {num: EpochOrder([10] * num, 0).num_lanes for num in (1, 8, 15, 16, 50, 512, 5000)}
    assert lanes == {1: 1, 8: 1, 15: 1, 16: 2, 50: 4, 512: 64, 5000: 64}


def test_a_reader_has_few_shards_in_use_and_a_batch_many() -> None:
    order = EpochOrder([100] * 128, seed=0)
    shards = order.ids(0, np.arange(4096)) // 100
    assert len(np.unique(shards)) <= order.num_lanes * 9  # 8 shards a window, not aligned to shards
    assert len(np.unique(shards[:64])) > 30


@pytest.mark.parametrize(
    ("batch", "world", "micro", "message"),
    [
        (16, 3, 1, "global batch 16 cannot be divided over 3 processes; use 1, 2, 4, 8, 16"),
        (12, 2, 4, "micro-batches of 4; use 1, 2, 3, 6"),
    ],
)
def test_batches_that_do_not_divide_name_the_numbers_that_do(batch: int, world: int, micro: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_divides(batch, world, micro)


def test_too_few_samples_for_one_batch_are_an_error() -> None:
    assert count_steps(33, 16) == 2
    with pytest.raises(DataError, match="15 samples do not fill one global batch of 16"):
        count_steps(15, 16)


def dividing(batch: int) -> list[int]:
    return [world for world in range(1, batch + 1) if batch % world == 0]


@pytest.mark.parametrize("epoch", [0, 1, 1000])
@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_over_the_grid_all_ranks_have_equal_steps_that_part_the_epoch_and_world_sizes_agree(
    sizes: list[int], epoch: int
) -> None:
    for batch in (batch for batch in BATCHES if batch <= sum(sizes)):
        order = SingleOrder(EpochOrder(sizes, seed=7), batch)
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert len(steps) == sum(sizes) // batch
        alone = order.draw(steps, 0, 1)
        assert len(np.unique(alone.ids)) == len(alone.ids) == len(steps) * batch
        assert set(alone.ids.tolist()) <= set(range(sum(sizes)))
        for world in dividing(batch):
            ranks = [order.draw(steps, rank, world) for rank in range(world)]
            assert {len(rank.ids) for rank in ranks} == {len(steps) * batch // world}
            assert np.stack([rank.ids for rank in ranks], axis=1).reshape(-1).tolist() == alone.ids.tolist()
            assert all((rank.epochs == epoch).all() for rank in ranks)


@pytest.mark.parametrize("sizes", [sizes for sizes in GRID.values() if sum(sizes) > 10])
def test_over_the_grid_every_epoch_has_another_order_and_drops_other_samples(sizes: list[int]) -> None:
    order = SingleOrder(EpochOrder(sizes, seed=7), 7)
    per_epoch = order.steps_per_epoch
    ids = order.draw(range(20 * per_epoch), 0, 1).ids.reshape(20, -1)
    assert len({tuple(row) for row in ids}) == 20
    if sum(sizes) % 7:
        left_out = {frozenset(range(sum(sizes))) - set(row.tolist()) for row in ids}
        assert len(left_out) > 1, "no sample is dropped in every epoch"


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_over_the_grid_a_micro_batch_mixes_shards_of_all_lanes(sizes: list[int]) -> None:
    order = EpochOrder(sizes, seed=7)
    lanes, full = order.num_lanes, [size for size in sizes if size]
    assert lanes == max(1, min(64, 2 ** int(np.log2(max(1, len(sizes) / 8)))))
    starts = np.cumsum(sizes) - sizes
    shards = np.searchsorted(starts, whole_epoch(order, 3), side="right") - 1
    rows = shards[: len(shards) // lanes * lanes].reshape(-1, lanes)
    meeting = np.array([len(set(row.tolist())) for row in rows])
    # lanes are next to each other: two may share the shard at their border
    assert meeting.min() >= (lanes + 1) // 2 and meeting.mean() > 0.9 * lanes
    if len(full) > 1 and lanes == 1:
        assert len(set(shards[: min(64, len(shards))].tolist())) >= min(len(full), 5) - 1
    if len(set(sizes)) == 1:  # windows of 8 even shards reach into 9
        assert len(set(shards[: order.window * lanes].tolist())) <= 9 * lanes


def shards_of(order: EpochOrder, ids: Ints) -> Ints:
    """Return the shards of samples, those without any left aside."""
    return np.searchsorted(np.cumsum(order.sizes), ids, side="right")


@pytest.mark.parametrize("epoch", [0, 5])
@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_the_needs_of_an_epoch_are_its_shards_window_by_window(sizes: list[int], epoch: int) -> None:
    order = EpochOrder(sizes, seed=7)
    places = np.arange(order.num_samples)
    window = order.window * order.num_lanes
    lasts = np.minimum((places // window + 1) * window, order.num_samples) - 1
    read = set(zip(shards_of(order, whole_epoch(order, epoch)).tolist(), lasts.tolist(), strict=True))
    needs = list(order.needs(epoch, 0))
    assert set(needs) == read
    assert [last for _, last in needs] == sorted(last for _, last in needs)
    for position in {0, 1, window - 1, window, order.num_samples // 2, order.num_samples - 1}:
        if position < order.num_samples:
            rest = list(order.needs(epoch, position))
            assert rest == [need for need in needs if need[1] >= position]
    assert list(order.needs(epoch, order.num_samples + window)) == []


def check_needs(order: Order, start: int, steps: int, slack: int) -> None:
    """Read ``steps`` global steps from ``start`` on as one who fetches shards ahead by ``needs`` would."""
    needs: Iterator[tuple[int, int]] = order.needs(start)
    known, owners, passed = list[tuple[int, int]](), np.cumsum([len(one.sizes) for one in order.orders]), set[int]()
    while len(passed) < len(owners):  # each set names its windows in order
        shard, last = next(needs)
        if last > start + steps + slack:
            passed.add(int(np.searchsorted(owners, shard, side="right")))
        else:
            known.append((shard, last))
    assert known[0][1] >= start
    sizes = np.concatenate([one.sizes for one in order.orders])
    ends = np.cumsum(sizes)
    lasts: dict[int, list[int]] = {}
    for shard, last in known:
        lasts.setdefault(shard, []).append(last)
    assert all(own == sorted(own) for own in lasts.values())
    if len(owners) == 1:
        assert [last for _, last in known] == sorted(last for _, last in known)
    drawn = order.draw(range(start, start + steps), 0, 1).ids.reshape(steps, -1)
    for step, ids in enumerate(drawn, start):
        for shard in set(np.searchsorted(ends, ids, side="right").tolist()):
            after = [last for last in lasts.get(shard, []) if last >= step]
            assert after, f"shard {shard} is read in step {step}, and was let go before"
            assert after[0] <= step + slack, f"shard {shard} is asked for {after[0] - step} steps late"
    assert all(sizes[shard] for shard in lasts)


@pytest.mark.parametrize("sizes", [sizes for sizes in GRID.values() if sum(sizes) > 10])
@pytest.mark.parametrize("batch", [1, 5, 12])
def test_no_shard_is_read_before_it_was_named_nor_after_its_last_step(sizes: list[int], batch: int) -> None:
    one = EpochOrder(sizes, seed=7)
    order = SingleOrder(one, batch)
    per_epoch = order.steps_per_epoch
    slack = -(-one.window * one.num_lanes // batch)
    for start in sorted({0, 1, per_epoch // 2, per_epoch - 1, per_epoch, 3 * per_epoch + 1}):
        check_needs(order, start, min(60, 2 * per_epoch), slack)


@pytest.mark.parametrize(
    ("sets", "shares"),
    [
        (("seven uneven", "many"), (1000, 3096)),
        (("1 and 19", "64 lanes", "empty ones"), (1, 4000, 95)),
        (("many", "two lanes"), (4095, 1)),
    ],
)
@pytest.mark.parametrize("batch", [64, 100])
def test_no_shard_of_a_mixture_is_read_before_it_was_named_nor_after_its_last_step(
    sets: Sequence[str], shares: Sequence[int], batch: int
) -> None:
    orders = [EpochOrder(GRID[name], seed=7) for name in sets]
    order = MixedOrder(orders, shares, batch)
    windows = max(one.window * one.num_lanes / share for one, share in zip(orders, shares, strict=True))
    slack = int((windows + 2) * CYCLE / batch)
    for start in (0, 1, CYCLE // batch - 1, CYCLE // batch, 5 * CYCLE // batch + 7):
        check_needs(order, start, 130, slack)


@pytest.mark.parametrize("epoch", [1, 100_000])
def test_steps_late_in_a_long_run_over_a_large_set_are_found_at_once(epoch: int) -> None:
    order = SingleOrder(EpochOrder([10_000] * 10_000, seed=7), 1024)
    last = epoch * order.steps_per_epoch
    draw = order.draw(range(last - 3, last + 3), 1, 2)
    assert draw.epochs.tolist() == [epoch - 1] * 3 * 512 + [epoch] * 3 * 512
    assert all(len(np.unique(half)) == 3 * 512 and half.max() < 10**8 for half in np.split(draw.ids, 2))
    assert len(set(shards_of(order.orders[0], draw.ids[-512:]).tolist())) > 150  # 32 lanes, 8 shards in each
