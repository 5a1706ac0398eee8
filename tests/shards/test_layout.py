"""The layout is a partition, deterministic, mixed, and within its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.shards.layout import ShardOptions, Split, layout_hash, listing_hash, mixed_order, options_hash, plan_shards


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 1000), max_size=200),
    samples=st.integers(1, 50),
    most_bytes=st.integers(1, 3000),
    seed=st.integers(0, 2**63),
)
def test_every_sample_lies_in_exactly_one_shard_within_the_limits(
    sizes: list[int], samples: int, most_bytes: int, seed: int
) -> None:
    array = np.array(sizes, np.int64)
    plans = plan_shards("train", array, seed=seed, shard_samples=samples, shard_bytes=most_bytes)
    items = np.concatenate([plan.items for plan in plans]) if plans else np.array([], np.int64)
    assert sorted(items.tolist()) == list(range(len(sizes)))
    assert [plan.first for plan in plans] == np.cumsum([0] + [len(plan.items) for plan in plans])[:-1].tolist()
    for plan in plans:
        assert 1 <= len(plan.items) <= samples
        assert len(plan.items) == 1 or array[plan.items].sum() <= most_bytes


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (1000, 1), (1001, 2), (50_000, 50), (1_000_000, 513)])
def test_a_large_split_has_at_least_512_shards_and_a_small_one_shards_of_1000(count: int, shards: int) -> None:
    plans = plan_shards("train", np.ones(count, np.int64), seed=0, shard_samples=10_000, shard_bytes=10**9)
    assert len(plans) == shards
    lengths = [len(plan.items) for plan in plans]
    assert max(lengths) - lengths[-1] <= shards


ORDER_OF_8 = [5, 4, 3, 7, 1, 6, 2, 0]


def test_the_order_is_pinned_for_all_versions() -> None:
    assert mixed_order(8, 0, "train").tolist() == ORDER_OF_8
    assert mixed_order(8, 1, "train").tolist() != ORDER_OF_8
    assert mixed_order(8, 0, "test").tolist() != ORDER_OF_8


def test_neighbours_of_the_listing_are_spread_over_the_shards() -> None:
    plans = plan_shards("train", np.ones(5000, np.int64), seed=0, shard_samples=500, shard_bytes=10**9)
    first_class = [int((plan.items < 500).sum()) for plan in plans]
    assert min(first_class) > 25 and max(first_class) < 80


def test_the_layout_hash_follows_what_decides_the_bytes_and_nothing_else() -> None:
    listing = {"train": Split(("a", "b"), np.array([1, 2]), None)}
    base = ShardOptions.fixed(ShardOptions(source="s", out="o"))
    assert base == ShardOptions(source="t", out="p", workers=3, max_refused=0.5).fixed()
    assert options_hash(base) != options_hash(ShardOptions(source="s", out="o", quality=90).fixed())
    hashes = {
        listing_hash(listing, None),
        listing_hash({"train": Split(("a", "c"), np.array([1, 2]), None)}, None),
        listing_hash({"train": Split(("a", "b"), np.array([1, 3]), None)}, None),
        listing_hash({"train": Split(("a", "b"), np.array([1, 2]), np.array([0, 1]))}, None),
        listing_hash(listing, ("x",)),
    }
    assert len(hashes) == 5
    assert layout_hash("a", "b") != layout_hash("a", "c")
