"""Histograms as plain numbers that a template draws: for sizes in pixels or bytes, and for aspect ratios.

Places on the axis run from 0 (left) to 1 (right), heights from 0 to 1 (the highest bin).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TENTHS = (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)  # round numbers, ten about equal steps from 1 to 10
MOST_BINS, MOST_TICKS = 30, 5
WIDE = 20  # from this ratio of largest to smallest the axis is logarithmic
OCTAVES = 4  # aspect ratios beyond 16:1 are drawn in the outermost bins


class Bin(NamedTuple):
    """One bin: where it begins and ends, how high it is stored and as found, and what to say of it."""

    left: float
    right: float
    stored: float
    found: float
    title: str


class Histogram(NamedTuple):
    """A drawn distribution; ``ticks`` are (place, text). Without bins all values are alike: ``median`` is the one."""

    bins: tuple[Bin, ...]
    ticks: tuple[tuple[float, str], ...]
    smallest: str
    median: str
    largest: str

    @property
    def changed(self) -> bool:
        """Say whether what is stored is distributed in another way than what was found."""
        return any(column.stored != column.found for column in self.bins)


def of_sizes(stored: npt.NDArray[Any], found: npt.NDArray[Any], show: Callable[[float], str]) -> Histogram:
    """Return the histogram of whole numbers [N], N > 0, beside what they were before, [N]; ``show`` writes one."""
    both = np.concatenate([stored, found]).astype(np.float64)
    low, high = max(1, int(both.min())), max(1, int(both.max()))
    wide = high >= WIDE * low
    edges = np.array(_rounded_edges(low, high) if wide else _even_edges(low, high), np.float64)
    titles = [
        show(begin) if end - begin == 1 else f"{show(begin)} to {show(end - 1)}"
        for begin, end in itertools.pairwise(edges.tolist())
    ]
    ticks = _rounded_ticks(int(edges[0]), int(edges[-1])) if wide else _even_edges(low, high, MOST_TICKS)
    axis = np.log if wide else np.asarray
    places = [(float(axis(tick)), show(tick)) for tick in ticks]
    return _histogram(stored, found, edges, axis(edges), titles, places, show)


def of_aspects(stored: npt.NDArray[Any], found: npt.NDArray[Any]) -> Histogram:
    """Return the histogram of ratios of width to height, four bins an octave, square in the middle."""
    octaves = np.log2(np.concatenate([stored, found]))
    reach = min(OCTAVES, max(1, math.ceil(float(np.abs(octaves).max()) - 1 / 8)))
    centres = np.arange(-4 * reach, 4 * reach + 1) / 4
    edges = np.append(centres - 1 / 8, reach + 1 / 8)
    titles = [f"about {show_aspect(2**centre)}" for centre in centres]
    named = range(-OCTAVES, OCTAVES + 1, 1 if reach < 3 else 2)
    ticks = [(float(octave), show_aspect(2.0**octave)) for octave in named]
    inside = [np.clip(values, 2.0**-reach, 2.0**reach) for values in (stored, found)]
    drawn = _histogram(inside[0], inside[1], 2.0**edges, edges, titles, ticks, show_aspect)
    return drawn._replace(smallest=show_aspect(float(stored.min())), largest=show_aspect(float(stored.max())))


def show_aspect(ratio: float) -> str:
    """Write a ratio of width to height: 1.5:1, 1:1, 1:2.35."""
    return f"{ratio:.3g}:1" if ratio >= 1 else f"1:{1 / ratio:.3g}"


def show_bytes(size: float) -> str:
    """Write a number of bytes with three digits at most before a decimal unit."""
    exponent = 0 if size < 1000 else min(4, int(math.log10(size) / 3))
    number = size / 1000**exponent
    digits = f"{number:.1f}".removesuffix(".0") if exponent and number < 100 else f"{number:.0f}"
    return f"{digits} {('B', 'kB', 'MB', 'GB', 'TB')[exponent]}"


def show_count(number: float) -> str:
    """Write a whole number with commas."""
    return f"{number:,.0f}"


def _histogram(
    stored: npt.NDArray[Any],
    found: npt.NDArray[Any],
    edges: Floats,
    axis: Floats,
    titles: list[str],
    ticks: list[tuple[float, str]],
    show: Callable[[float], str],
) -> Histogram:
    """Count both between ``edges``, whose places on the axis are ``axis``."""
    counts = np.histogram(stored, edges)[0], np.histogram(found, edges)[0]
    highest = max(int(counts[0].max()), int(counts[1].max()))
    places = (axis - axis[0]) / (axis[-1] - axis[0])
    bins = tuple(
        Bin(float(left), float(right), inside / highest, before / highest, f"{title}: {show_count(inside)}")
        for left, right, inside, before, title in zip(places[:-1], places[1:], *counts, titles, strict=True)
    )
    shown = tuple(((place - axis[0]) / (axis[-1] - axis[0]), text) for place, text in ticks)
    kept = tuple((float(place), text) for place, text in shown if 0 <= place <= 1)
    median = float(np.percentile(stored, 50, method="nearest"))
    alike = stored.min() == stored.max() == found.min() == found.max()
    return Histogram(() if alike else bins, kept, show(float(stored.min())), show(median), show(float(stored.max())))


def _even_edges(low: int, high: int, most: int = MOST_BINS) -> list[int]:
    """Return multiples of a round step around ``low`` to ``high``, in at most ``most`` steps within."""
    step = next(
        factor * 10**power for power in range(20) for factor in (1, 2, 5) if high - low < most * factor * 10**power
    )
    return list(range(low // step * step, high + step + 1, step))


def _rounded_edges(low: int, high: int) -> list[int]:
    """Return whole numbers in about equal ratios from at most ``low`` to above ``high``."""
    powers = range(int(math.log10(low)), int(math.log10(high)) + 2)
    edges = sorted({math.ceil(factor * 10**power) for power in powers for factor in TENTHS})
    first = max(edge for edge in edges if edge <= low)
    last = min(edge for edge in edges if edge > high)
    return [edge for edge in edges if first <= edge <= last]


def _rounded_ticks(first: int, last: int) -> list[int]:
    """Return 1, 2, 5, 10, ... from ``first`` to ``last``, or only powers of ten, as many as there is room for."""
    series = (
        [factor * 10**power for power in range(0, 20, every) for factor in factors]
        for factors, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3))
    )
    inside = ([tick for tick in ticks if first <= tick <= last] for ticks in series)
    return next(ticks for ticks in inside if len(ticks) <= MOST_TICKS + 1)
