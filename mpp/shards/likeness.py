"""Which images look alike: a hash of each, and the groups of images whose hashes are near.

The hash is that of differences, along the rows and along the columns, 64 bits each: shrunk to 9 x 8 (8 x 9) gray
pixels, a bit says whether a pixel is brighter than the one before it. It outlives another size or JPEG quality, not
a turn or a mirror. Rows alone would find a bright thing before a dark wall like any other. A group is a connected
component, so the ends of a chain may differ by more than two neighbours do. Legend: N images, U distinct hashes,
P pairs, S splits; the 2 are rows and columns.
"""

import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DRAFT_SIZE = (72, 72)  # JPEGs are decoded at the smallest of their scales that is not below this: 1.6 times as fast
PLAIN = (0, 2**64 - 1)  # no pixel brighter than the one before it, or every one
EDGES_HELD = 1 << 20

Hashes = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Likeness(NamedTuple):
    """What each image looks like.

    ``firsts`` [N]: the lowest number in the image's group, its own where it is alone. ``reaches`` [N, S]: whether
    split S has another image within the distance. ``flat`` [N]: without structure, so like no other image.
    """

    firsts: Int64s
    reaches: Mask
    flat: Mask


def difference_hash(image: bytes) -> tuple[int, int]:
    """Return the hash of an encoded image along rows and columns; bit 8 y + x is that of row y and column x."""
    from PIL import Image

    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
        opened.draft("L", DRAFT_SIZE)
        gray = opened.convert("L")
    wide, high = (np.asarray(gray.resize(size, Image.Resampling.BILINEAR)) for size in ((9, 8), (8, 9)))
    brighter = (wide[:, 1:] > wide[:, :-1], high[1:] > high[:-1])
    rows, columns = (int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little") for bits in brighter)
    return rows, columns


def bits_apart(one: Hashes, other: Hashes) -> npt.NDArray[np.uint8]:
    """Return the distances of hashes [..., 2]: the bits that differ along rows or along columns, whichever are more."""
    differing: npt.NDArray[np.uint8] = np.bitwise_count(one ^ other)
    return np.maximum(differing[..., 0], differing[..., 1])


def find_likeness(hashes: Hashes, splits: Int64s, num_splits: int, distance: int) -> Likeness:
    """Compare all images: ``hashes`` [N, 2], and ``splits`` [N], the number of the split of each."""
    plain = np.isin(hashes, np.array(PLAIN, np.uint64))
    flat = plain[:, 0] & plain[:, 1]
    shaped = np.flatnonzero(~flat)
    lowest, kinds = _distinct(hashes[shaped])
    counts = np.zeros((len(lowest), num_splits), np.int64)
    np.add.at(counts, (kinds, splits[shaped]), 1)
    present, near = counts > 0, np.zeros((len(lowest), num_splits), bool)
    components = _Components(len(lowest))
    for left, right in near_pairs(hashes[shaped[lowest]], distance):
        components.join(left, right)
        for split in range(num_splits):
            near[left[present[right, split]], split] = True
            near[right[present[left, split]], split] = True
    labels = components.labels()
    leaders = np.full(len(lowest), len(hashes))
    np.minimum.at(leaders, labels, shaped[lowest])
    firsts, reaches = np.arange(len(hashes)), np.zeros((len(hashes), num_splits), bool)
    firsts[shaped] = leaders[labels[kinds]]
    own = np.arange(num_splits) == splits[shaped][:, None]
    reaches[shaped] = near[kinds] | (counts[kinds] > own)
    return Likeness(firsts, reaches, flat)


def _distinct(hashes: Hashes) -> tuple[Int64s, Int64s]:
    """Return where each distinct one of ``hashes`` [N, 2] occurs first [U], and which of them each is [N]."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    fresh = np.ones(len(hashes), bool)
    fresh[1:] = (hashes[order][1:] != hashes[order][:-1]).any(axis=1)
    kinds = np.zeros(len(hashes), np.int64)
    kinds[order] = np.cumsum(fresh) - 1
    return order[fresh], kinds


def near_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[Int64s, Int64s]]:
    """Yield the pairs of distinct ``hashes`` [U, 2] within ``distance``, some repeatedly: their places [P] and [P].

    Pigeonhole: of ``distance + 2`` blocks of the bits along rows at most ``distance`` differ, so two agree. For every
    two blocks the hashes are sorted by the bits in them, and compared where these are equal. The bits of a block lie
    apart, because neighbours say much the same.
    """
    blocks = distance + 2
    masks = [sum(1 << bit for bit in range(block, 64, blocks)) for block in range(blocks)]
    for one, other in itertools.combinations(masks, 2):
        keys = hashes[:, 0] & np.uint64(one | other)
        order = np.argsort(keys, kind="stable")
        keys, ordered, places = keys[order], np.ascontiguousarray(hashes[order].T), np.arange(len(keys))
        for step in range(1, len(keys)):
            places = places[: np.searchsorted(places, len(keys) - step)]
            places = places[keys[places] == keys[places + step]]
            if not len(places):
                break
            near = places
            for words in ordered:  # along rows, then what is left along columns
                near = near[np.bitwise_count(words[near] ^ words[near + step]) <= distance]
            if len(near):
                yield order[near], order[near + step]


class _Components:
    """Connected components of a graph whose edges come a few at a time; at most ``EDGES_HELD`` and a few are held."""

    def __init__(self, nodes: int) -> None:
        self._labels = np.arange(nodes)
        self._edges: list[tuple[Int64s, Int64s]] = []
        self._held = 0

    def join(self, left: Int64s, right: Int64s) -> None:
        """Add the edges between the nodes ``left`` [P] and ``right`` [P]."""
        apart = self._labels[left] != self._labels[right]
        self._edges.append((left[apart], right[apart]))
        self._held += int(apart.sum())
        if self._held > EDGES_HELD:
            self._merge()

    def labels(self) -> Int64s:
        """Return the number of the component of every node."""
        if self._edges:
            self._merge()
        return self._labels

    def _merge(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left, right = (self._labels[np.concatenate(ends)] for ends in zip(*self._edges, strict=True))
        graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(self._labels),) * 2)
        self._labels = connected_components(graph, directed=False)[1].astype(np.int64)[self._labels]
        self._edges, self._held = [], 0
