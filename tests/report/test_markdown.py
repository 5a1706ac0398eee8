"""Markdown holds the figures in tables, the pictures as links, and names as text whatever is in them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpp.evaluation.verdict import ArmFacts, Comparison
from mpp.report.contents import Contents, draw_contents
from mpp.report.markdown import report, short

VALUES = {"masked": [60.1, 61.2, 62.4], "supervised": [70.0, 71.0, 72.5], "scratch": [50.0, 51.5, 52.0]}


@pytest.fixture
def contents(compared: Callable[..., Comparison]) -> Contents:
    return draw_contents(compared({5: VALUES, None: VALUES}, notes=("a note",), warnings=("a warning",)))


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of every table, its header first."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = [line for line in block.splitlines() if not line.startswith("|-")]
        found.append([[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines])
    return found


def test_the_report_has_every_table_whole_and_every_picture(contents: Contents) -> None:
    text = report(contents)
    results, costs, arms, data, environment = tables(text)
    assert [len(results), len(costs), len(arms), len(data)] == [7, 7, 4, 3]
    assert ["torch" in row[0] for row in environment].count(True) == 1
    for table in (results, costs, arms, data, environment):
        assert len({len(row) for row in table}) == 1
    for row, line in zip(contents.comparison.rows, results[1:], strict=True):
        assert line[:2] == ["all" if row.labels_per_class is None else "5", row.arm]
        assert line[2] == f"{row.top1.mean:.2f} [{row.top1.low:.2f}, {row.top1.high:.2f}]"
        assert line[6] == " ".join(f"{value:.2f}" for value in row.top1_by_seed)
    assert re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE) == list(contents.pictures)
    for said in (contents.verdict.headline, *contents.verdict.beside, *contents.equality, "a note", "a warning"):
        assert said in text
    assert text.index("a warning") < text.index(contents.verdict.headline) < text.index("| labels")


def test_a_terminal_shows_warnings_verdict_table_and_notes_within_its_width(contents: Contents) -> None:
    lines = short(contents.comparison, contents.verdict).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 8 and len({len(line) for line in table}) == 1 and len(table[0]) <= 140
    assert lines[0] == "**Read with this warning:**" and lines[2] == "* a warning"
    assert contents.verdict.headline in lines and "* a note" in lines


def test_names_are_text_and_never_markup(compared: Callable[..., Comparison], tmp_path: Path) -> None:
    evil = "a|b <script>alert(1)</script> *bold* `code` [x](http://evil)\n# title"
    comparison = compared({5: {evil: [60.0, 61.0], "scratch": [50.0, 51.5]}}, notes=(evil,), warnings=(evil,))
    arms = (ArmFacts(evil, "backbone", evil, None, ()), comparison.arms[1])
    settings = {"shards": "```\nescaped"}
    text = report(draw_contents(replace(comparison, arms=arms, settings=settings, environment={evil: evil})))
    escaped = r"a\|b \<script>alert(1)\</script> \*bold\* \`code\` [x\](http://evil) # title"
    assert text.count(escaped) >= 8
    plain = re.sub(r"(`{3,})yaml\n.*?\n\1\n", "", text, flags=re.DOTALL).replace(escaped, "")
    assert "script" not in plain and "# title" not in plain and "](http" not in plain
    assert {len(row) for table in tables(text) for row in table[1:]} == {len(table[0]) for table in tables(text)}
    assert re.search(r"^````yaml$", text, flags=re.MULTILINE), "a fence longer than the one within"


def test_text_without_special_characters_is_left_alone(contents: Contents) -> None:
    assert "\\" not in short(contents.comparison, contents.verdict)
