"""A table is Markdown and its columns stand below each other, also in scripts of wide characters."""

from mpp.evaluation.tables import aligned


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned(["a", "longer"], [["1234", "5"], ["", "x"]]).splitlines() == [
        "| a    | longer |",
        "|------|--------|",
        "| 1234 | 5      |",
        "|      | x      |",
    ]


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    lines = aligned(["arm"], [["猫"], ["e\u0301"], ["abcd"]]).splitlines()
    assert lines[2:] == ["| 猫   |", "| e\u0301    |", "| abcd |"]


def test_a_table_without_rows_is_its_header() -> None:
    assert aligned(["a"], []) == "| a |\n|---|\n"
