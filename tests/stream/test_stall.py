"""The stall clock's figures are those worked out by hand, and every lap begins anew."""

import pytest

from mpp.stream.stall import Cost, Skip, StallClock

FIRST = Cost(images=10, bytes=3_000_000, read_seconds=0.02, view_seconds=0.1, retries=2, cache_hits=5, cache_misses=1)
SECOND = Cost(
    images=30,
    bytes=5_000_000,
    read_seconds=0.06,
    view_seconds=0.5,
    retries=1,
    cache_hits=7,
    cache_misses=2,
    skipped=(Skip(3, 4, "3 is damaged"), Skip(8, 9, "8 is damaged")),
)


def test_a_lap_has_the_figures_worked_out_by_hand() -> None:
    clock = StallClock()
    clock.add(0.5, 3, FIRST)
    clock.add(1.5, 0, SECOND)
    rates, counts = clock.lap(8.0)
    assert rates == pytest.approx(
        {
            "data_wait_seconds": 2.0,
            "data_wait_share": 0.25,
            "batches_ready": 1.5,
            "read_megabytes_per_second": 1.0,
            "read_ms_per_image": 2.0,
            "view_ms_per_image": 15.0,
        }
    )
    assert counts == {"retries": 3, "skipped": 2, "cache_hits": 12, "cache_misses": 3}


def test_a_lap_begins_anew() -> None:
    clock = StallClock()
    clock.add(2.0, 1, SECOND)
    clock.lap(4.0)
    clock.add(0.25, 2, FIRST)
    rates, counts = clock.lap(1.0)
    assert (rates["data_wait_seconds"], rates["data_wait_share"], rates["batches_ready"]) == (0.25, 0.25, 2.0)
    assert counts == {"retries": 2, "skipped": 0, "cache_hits": 5, "cache_misses": 1}


def test_a_lap_without_a_batch_or_a_second_is_all_zeros() -> None:
    rates, counts = StallClock().lap(0.0)
    assert set(rates.values()) == set(counts.values()) == {0.0}
