"""The order is a partition, the same for every number of processes, another every epoch, and found lazily."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.errors import ConfigError, DataError
from mpp.stream.order import EpochOrder, Ints, check_divides, count_steps, rank_positions

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
