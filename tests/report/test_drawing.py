"""Figures are written small and alike, with names of any kind as plain text."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mpp.report.drawing import COLORS, cycle, finish, is_hollow, legible, look_of, new_figure, save

NAMES = ["<b>&amp;", "$x^2$", "_hidden", "猫", 'a "quoted" name', "\x1b[31m", "long-" * 40, ""]


def draw(path: Path, names: list[str]) -> bytes:
    figure = new_figure(3, 2, names)
    axes = figure.subplots()
    for number, name in enumerate(names):
        axes.plot([0, 1 / 3], [number, number + 1], label=legible(name))
    finish(axes, "across", "up")
    save(figure, path)
    return path.read_bytes()


def test_names_of_any_kind_are_text_in_the_legend(tmp_path: Path) -> None:
    text = draw(tmp_path / "figure.svg", NAMES).decode()
    words = "".join(ElementTree.fromstring(text).itertext())
    for name in NAMES[:5]:
        assert name in words, name
    assert "\\x1b[31m" in words and "…" in words
    assert "<b>" not in text


def test_an_svg_names_no_date_no_address_and_has_short_numbers(tmp_path: Path) -> None:
    text = draw(tmp_path / "figure.svg", ["one"]).decode()
    assert re.findall(r"metadata|matplotlib|purl|20\d\d-", text) == []
    assert re.findall(r' (?:d|x|y)="[^"]*\d\.\d\d[^"]*"', text) == []
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text))
    assert used == set(re.findall(r' id="([^"]*)"', text))


@pytest.mark.parametrize(("name", "start"), [("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_the_extension_chooses_the_format_and_equal_figures_give_equal_bytes(
    tmp_path: Path, name: str, start: bytes
) -> None:
    first, second = (draw(tmp_path / folder / name, ["one"]) for folder in ("a", "b"))
    assert first.startswith(start)
    assert first == second


def test_an_arm_has_its_own_look_whatever_else_is_drawn() -> None:
    arms = [f"arm{number}" for number in range(9)]
    assert look_of(arms, "arm1") == (COLORS[1], "s")
    assert look_of(arms, "arm8") == look_of(arms, "arm1")
    assert cycle("ab", 3) == ["a", "b", "a"]


def test_arms_of_one_colour_and_marker_differ_in_being_hollow() -> None:
    arms = [f"arm{number}" for number in range(2 * len(COLORS))]
    assert len({(*look_of(arms, arm), is_hollow(arms, arm)) for arm in arms}) == len(arms)
