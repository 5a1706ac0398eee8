"""A window shows no byte outside of it; names that occur twice are told apart, whatever they are."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.sources.members import DistinctNames, WindowStream, open_window


def test_a_window_shows_its_stretch_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(10)))
    with open_window(tmp_path / "file") as whole:
        assert (whole.begin, whole.end) == (0, 10)
        window = whole._replace(begin=2, end=6)
        assert window.read(3, 100) == bytes([3, 4, 5])
        assert [window.read(offset, 5) for offset in (-1, 1, 6, 2**70)] == [b""] * 4
        assert window.read_exactly(2, 4) == bytes([2, 3, 4, 5])
        with pytest.raises(OSError, match="1 of 4 bytes at byte 5: the archive has changed"):
            window.read_exactly(5, 4)
        with WindowStream(window) as stream:
            assert stream.read() == bytes([2, 3, 4, 5])


def test_a_window_is_closed_behind_us_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open_window(tmp_path / "pipe") as window:
        assert window.end == 0
    with pytest.raises(OSError):
        os.fstat(window.descriptor)


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "\udcff"]), max_size=30))
def test_names_become_distinct_and_the_first_of_each_stays(names: list[str]) -> None:
    seen = DistinctNames()
    given_out = [seen.distinct(name) for name in names]
    assert max(Counter(given_out).values(), default=1) == 1
    assert all(out == name or out.startswith(f"{name}#") for name, out in zip(names, given_out, strict=True))
    assert given_out[:1] == names[:1]


def test_many_names_and_many_equal_names_are_counted() -> None:
    seen = DistinctNames()
    assert all(seen.distinct(str(number)) == str(number) for number in range(5000))
    assert [seen.distinct("4999") for _ in range(3000)][-1] == "4999#3001"
