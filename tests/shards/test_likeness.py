"""Images that look alike have near hashes, and the search finds exactly the pairs that comparing all would find."""

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mpp.shards.likeness as likeness
from mpp.shards.likeness import Hashes, bits_apart, difference_hash, find_likeness, near_pairs

WORD = 2**64 - 1


@st.composite
def hashes(draw: st.DrawFn) -> Hashes:
    """Draw hashes [N, 2] of which many are near: some words with some bits flipped, and plain ones."""
    centres = draw(st.lists(st.tuples(st.integers(0, WORD), st.integers(0, WORD)), min_size=1, max_size=3))
    centres += [(0, 0), (WORD, 0)]
    flips = st.lists(st.integers(0, 63), max_size=5).map(lambda bits: sum(1 << bit for bit in set(bits)))
    drawn = draw(st.lists(st.tuples(st.sampled_from(centres), flips, flips), max_size=24))
    return np.array([(row ^ one, column ^ other) for (row, column), one, other in drawn], np.uint64).reshape(-1, 2)


def apart(one: Hashes, other: Hashes) -> int:
    return max((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


@given(hashes(), st.integers(0, 7))
def test_the_search_finds_the_pairs_that_comparing_all_finds(drawn: Hashes, distance: int) -> None:
    distinct = np.unique(drawn, axis=0)
    found = {
        frozenset(pair)
        for left, right in near_pairs(distinct, distance)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    }
    pairs = itertools.combinations(range(len(distinct)), 2)
    assert found == {frozenset(pair) for pair in pairs if apart(*distinct[list(pair)]) <= distance}


def _chains(near: dict[int, set[int]]) -> Iterator[set[int]]:
    left = set(near)
    while left:
        group, edge = set[int](), {min(left)}
        while edge:
            group |= edge
            edge = {other for number in edge for other in near[number]} - group
        left -= group
        yield group


@pytest.mark.parametrize("held", [0, 1 << 20])
@given(drawn=hashes(), distance=st.integers(0, 7), data=st.data())
def test_groups_are_chains_of_near_images(held: int, drawn: Hashes, distance: int, data: st.DataObject) -> None:
    splits = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(drawn), max_size=len(drawn))), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "EDGES_HELD", held)  # whether the edges come together or one by one
        found = find_likeness(drawn, splits, 3, distance)
    flat = [set(map(int, pair)) <= {0, WORD} for pair in drawn]
    assert found.flat.tolist() == flat
    near = {
        number: {
            other
            for other in range(len(drawn))
            if other != number
            and not flat[number]
            and not flat[other]
            and apart(drawn[number], drawn[other]) <= distance
        }
        for number in range(len(drawn))
    }
    for group in _chains(near):
        assert found.firsts[list(group)].tolist() == [min(group)] * len(group)
    for number, others in near.items():
        assert found.reaches[number].tolist() == [split in splits[list(others)] for split in range(3)]


def _encoded(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: str, side: int = 0, **options: int
) -> bytes:
    image, target = Image.fromarray(pixels), io.BytesIO()
    if side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    image.save(target, kind, **options)
    return target.getvalue()


def _scene(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return smooth random pixels [256, 256, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("seed", range(8))
def test_another_size_quality_or_format_is_near_and_another_image_or_its_mirror_far(seed: int) -> None:
    def far(one: bytes, other: bytes) -> int:
        return int(bits_apart(*(np.array(difference_hash(image), np.uint64) for image in (one, other))))

    scene = _scene(seed)
    original = _encoded(scene, "PNG")
    assert far(original, _encoded(scene, "JPEG", quality=90)) <= 2
    assert far(original, _encoded(scene, "JPEG", quality=40)) <= 4
    assert far(original, _encoded(scene, "JPEG", side=100, quality=85)) <= 4
    assert far(original, _encoded(_scene(seed + 100), "PNG")) > 14
    assert far(original, _encoded(scene[:, ::-1], "PNG")) > 14


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_bits_say_where_the_image_gets_brighter(kind: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 252, dtype=np.uint8), (252, 252))
    assert difference_hash(_encoded(ramp, kind)) == (WORD, 0)
    assert difference_hash(_encoded(ramp.T, kind)) == (0, WORD)
    assert difference_hash(_encoded(ramp[:, ::-1], kind)) == (0, 0)
    assert difference_hash(_encoded(np.full((40, 30, 3), 200, np.uint8), kind)) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_bits_are_in_reading_order(seed: int) -> None:
    wide, high = (np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for shape in ((8, 9), (9, 8)))
    places = list(itertools.product(range(8), range(8)))
    rows = sum(1 << (8 * y + x) for y, x in places if wide[y, x + 1] > wide[y, x])
    columns = sum(1 << (8 * y + x) for y, x in places if high[y + 1, x] > high[y, x])
    assert difference_hash(_encoded(wide, "PNG"))[0] == rows
    assert difference_hash(_encoded(high, "PNG"))[1] == columns
