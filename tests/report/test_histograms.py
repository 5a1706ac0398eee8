"""Histograms hold every value, on an axis without gaps, whatever the values are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.report.histograms import (
    MOST_BINS,
    MOST_TICKS,
    Histogram,
    of_aspects,
    of_sizes,
    show_aspect,
    show_bytes,
    show_count,
)

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)
RATIOS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


def _counted(histogram: Histogram) -> int:
    return sum(int(drawn.title.rpartition(": ")[2].replace(",", "")) for drawn in histogram.bins)


def _check(histogram: Histogram, values: int) -> None:
    assert _counted(histogram) == values
    edges = [histogram.bins[0].left, *(drawn.right for drawn in histogram.bins)]
    assert edges == sorted(set(edges)) and (edges[0], edges[-1]) == (0, 1)
    assert all(one.right == next_.left for one, next_ in zip(histogram.bins, histogram.bins[1:], strict=False))
    heights = [height for drawn in histogram.bins for height in (drawn.stored, drawn.found)]
    assert min(heights) >= 0 and max(heights) == 1
    places = [place for place, _ in histogram.ticks]
    assert places == sorted(set(places)) and min(places) >= 0 and max(places) <= 1


@given(SIZES)
def test_every_size_is_in_one_bin(sizes: list[int]) -> None:
    values = np.array(sizes)
    histogram = of_sizes(values, values, show_count)
    if min(sizes) == max(sizes):
        assert histogram.bins == () and histogram.median == show_count(sizes[0])
        return
    _check(histogram, len(sizes))
    decades = np.log10(max(sizes) / min(sizes))
    assert len(histogram.bins) <= max(MOST_BINS + 1, 10 * decades + 2)
    assert 1 <= len(histogram.ticks) <= MOST_TICKS + 1
    assert not histogram.changed


@given(RATIOS)
def test_every_aspect_is_in_one_bin(ratios: list[float]) -> None:
    values = np.array(ratios)
    histogram = of_aspects(values, values)
    if histogram.bins:
        _check(histogram, len(ratios))


@given(RATIOS)
def test_turning_every_image_turns_the_histogram_of_aspects(ratios: list[float]) -> None:
    # eighths of an octave are where bins meet: a value there falls into the same bin both ways
    values = 2 ** (np.round(np.log2(ratios) * 5) / 5)
    there, back = of_aspects(values, values), of_aspects(1 / values, 1 / values)
    assert [drawn.stored for drawn in there.bins] == [drawn.stored for drawn in back.bins][::-1]


def test_square_is_the_middle_and_beyond_sixteen_to_one_is_the_end() -> None:
    histogram = of_aspects(np.array([1.0, 100.0]), np.array([1.0, 100.0]))
    high = [drawn for drawn in histogram.bins if drawn.stored]
    assert high[0].left < 0.5 < high[0].right and high[1].right == 1
    assert histogram.largest == "100:1"
    assert dict((text, place) for place, text in histogram.ticks)["1:1"] == 0.5


def test_numbers_once_each_give_bins_of_one_height_named_after_them() -> None:
    histogram = of_sizes(np.arange(1, 12), np.arange(1, 12), show_count)
    assert [drawn.title for drawn in histogram.bins] == [f"{number}: 1" for number in range(1, 12)]
    assert {drawn.stored for drawn in histogram.bins} == {1}
    assert (histogram.smallest, histogram.median, histogram.largest) == ("1", "6", "11")


def test_what_was_found_is_drawn_on_the_same_axis() -> None:
    histogram = of_sizes(np.full(4, 100), np.array([100, 200, 300, 400]), show_count)
    assert histogram.changed and histogram.bins[0].stored == 1
    assert sum(drawn.found for drawn in histogram.bins) == 4 * (1 / 4)
    assert (histogram.smallest, histogram.largest) == ("100", "100")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_aspect(1), "1:1"),
        (show_aspect(1.5), "1.5:1"),
        (show_aspect(0.5), "1:2"),
        (show_bytes(0), "0 B"),
        (show_bytes(999), "999 B"),
        (show_bytes(1000), "1 kB"),
        (show_bytes(12_345), "12.3 kB"),
        (show_bytes(123_456_789), "123 MB"),
        (show_bytes(2e15), "2000 TB"),
        (show_count(1234567), "1,234,567"),
    ],
)
def test_numbers_are_written_for_people(shown: str, text: str) -> None:
    assert shown == text
