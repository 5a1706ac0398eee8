"""What is passed over is counted by extension, in little memory."""

from mpp.sources import passed
from mpp.sources.passed import PassedOver


def words(*names: str) -> str:
    seen = PassedOver()
    for name in names:
        seen.add(name)
    return seen.words()


def test_files_are_counted_by_their_extension_the_most_frequent_first() -> None:
    assert words() == ""
    assert words("a.photo") == "; passed over: 1 file (.photo 1)"
    names = ("b.d/a.TXT", "1.photo", "c.txt", "LICENSE", "x." + "y" * 100, "z.\x1b")
    assert words(*names) == "; passed over: 6 files (.txt 2, no extension 2, .\\x1b 1, .photo 1)"
    assert words(*(f"x.{n}" for n in range(7))).endswith("(.0 1, .1 1, .2 1, .3 1, .4 1, ...)")


def test_an_archive_that_is_not_read_is_named() -> None:
    expected = "; passed over: 2 files (.rar 1, .tar.zst 1), of which a.tar.zst is an archive that is not read"
    assert words("a.tar.zst", "b.rar") == expected


def test_names_that_are_all_different_do_not_fill_the_memory() -> None:
    seen = PassedOver()
    for number in range(10 * passed.MOST_KINDS):
        seen.add(f"x.{number}")
    assert len(seen.kinds) == passed.MOST_KINDS + 1 and seen.kinds["others"] == 9 * passed.MOST_KINDS
    seen.clear()
    assert seen.words() == ""
