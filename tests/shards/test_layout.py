"""The layout is a partition, deterministic, mixed, and within its limits."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.shards.layout import ShardPlan, cut_shards, layout_hash, mixed_order, plan_shard


def all_plans(sizes: list[int], *, shard_samples: int, shard_bytes: int, seed: int = 0) -> list[ShardPlan]:
    limits = {"shard_samples": shard_samples, "shard_bytes": shard_bytes}
    bounds = cut_shards("train", np.array(sizes, np.int64), seed=seed, **limits)
    return [plan_shard("train", {"train": bounds}, number, seed) for number in range(len(bounds) - 1)]


@given(
    sizes=st.lists(st.integers(0, 1000), max_size=200),
    samples=st.integers(1, 50),
    most_bytes=st.integers(1, 3000),
    seed=st.integers(0, 2**63),
)
def test_every_sample_lies_in_exactly_one_shard_within_the_limits(
    sizes: list[int], samples: int, most_bytes: int, seed: int
) -> None:
    plans = all_plans(sizes, seed=seed, shard_samples=samples, shard_bytes=most_bytes)
    items = list(itertools.chain.from_iterable(plan.items.tolist() for plan in plans))
    assert sorted(items) == list(range(len(sizes)))
    assert [plan.first for plan in plans] == np.cumsum([0] + [len(plan.items) for plan in plans])[:-1].tolist()
    for plan in plans:
        assert 1 <= len(plan.items) <= samples
        assert len(plan.items) == 1 or sum(sizes[item] for item in plan.items) <= most_bytes


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (1000, 1), (1001, 2), (50_000, 50), (1_000_000, 513)])
def test_a_large_split_has_at_least_512_shards_and_a_small_one_shards_of_1000(count: int, shards: int) -> None:
    bounds = cut_shards("train", np.ones(count, np.int64), seed=0, shard_samples=10_000, shard_bytes=10**9)
    lengths = np.diff(bounds)
    assert len(lengths) == shards
    assert max(lengths) - lengths[-1] <= shards


def test_images_of_unknown_size_count_as_128_kib() -> None:
    plans = all_plans([-1] * 10, shard_samples=100, shard_bytes=4 * 128 * 1024)
    assert [len(plan.items) for plan in plans] == [4, 4, 2]


def test_the_order_is_pinned_for_all_versions() -> None:
    order = mixed_order(0, 8, 8, 0, "train").tolist()
    assert order == [2, 5, 4, 6, 0, 3, 1, 7]
    assert mixed_order(3, 6, 8, 0, "train").tolist() == order[3:6]
    assert mixed_order(0, 8, 8, 1, "train").tolist() != order
    assert mixed_order(0, 8, 8, 0, "test").tolist() != order


def test_neighbours_of_the_listing_are_spread_over_the_shards() -> None:
    plans = all_plans([1] * 5000, shard_samples=500, shard_bytes=10**9)
    first_class = [int((plan.items < 500).sum()) for plan in plans]
    assert min(first_class) > 25 and max(first_class) < 80


def test_the_layout_hash_follows_listing_and_options() -> None:
    assert len({layout_hash("a", "b"), layout_hash("a", "c"), layout_hash("b", "b")}) == 3
