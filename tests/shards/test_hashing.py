"""The hash is the published one, and a permutation is one that never changes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpp.shards.hashing import INCREMENT, hash64, permutation, shuffled

# The first outputs of the published SplitMix64 (Steele, Lea, Flood 2014) from the state 1234567.
OUTPUTS = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_hash_is_splitmix64() -> None:
    assert hash64(0).tolist() == [0xE220A8397B1DCDAF]
    assert hash64(np.uint64(1234567) + np.arange(5, dtype=np.uint64) * INCREMENT).tolist() == OUTPUTS


def test_integers_are_chained_wrap_and_broadcast() -> None:
    assert hash64(-1).tolist() == hash64(2**64 - 1).tolist() == hash64(np.array([-1])).tolist()
    assert hash64(1, np.arange(3)).tolist() == [hash64(1, number)[0] for number in range(3)]
    assert hash64(1, 2).tolist() == hash64(hash64(1) + np.uint64(2)).tolist() != hash64(2, 1).tolist()
    assert hash64(np.arange(3)[:, None], np.arange(4)).shape == (3, 4)


@given(st.integers(0, 300), st.integers(0, 9))
def test_a_permutation_is_one(num: int, key: int) -> None:
    assert sorted(permutation(num, key, 1)) == list(range(num))


def test_a_permutation_belongs_to_its_key_in_all_versions() -> None:
    assert permutation(8, 0).tolist() == [5, 7, 1, 4, 2, 0, 6, 3]
    assert permutation(100, 0).tolist() != permutation(100, 1).tolist() != permutation(100, 1, 0).tolist()


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_shuffling_is_a_permutation_whatever_part_of_it_is_asked_for(num: int, key: int) -> None:
    whole = shuffled(np.arange(num), num, key)
    assert sorted(whole.tolist()) == list(range(num))
    assert shuffled(np.arange(num // 2, num), num, key).tolist() == whole[num // 2 :].tolist()


def test_shuffling_spreads_neighbours_evenly_and_belongs_to_its_key_in_all_versions() -> None:
    tenths = shuffled(np.arange(100_000), 100_000, 0).reshape(10, -1) // 10_000
    counts = np.array([np.bincount(part, minlength=10) for part in tenths])
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 81 - 4 * np.sqrt(162) < chi_square < 81 + 4 * np.sqrt(162)  # 81 degrees of freedom, variance 162
    assert shuffled(np.arange(8), 8, 0).tolist() == [6, 0, 4, 1, 3, 7, 2, 5]
    assert shuffled(np.arange(8), 8, 1).tolist() != [6, 0, 4, 1, 3, 7, 2, 5]
