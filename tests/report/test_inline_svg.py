"""A picture becomes a part of a page: its own names, the page's colours, nothing that the page would fetch."""

import re
from pathlib import Path

import pytest

from mpp.report.drawing import finish, new_figure, save
from mpp.report.inline_svg import inline_svg


@pytest.fixture
def svg(tmp_path: Path) -> Path:
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o", label="<script>alert(1)</script>")
    finish(axes, "across", "up")
    save(figure, tmp_path / "curve.svg")
    return tmp_path / "curve.svg"


def test_names_are_prefixed_so_that_two_pictures_share_none(svg: Path) -> None:
    text = inline_svg(svg, "a title")
    names = re.findall(r' id="([^"]*)"', text)
    assert names and all(name.startswith("curve-") for name in names)
    assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', text)) == set(names)


def test_black_and_white_are_those_of_the_page(svg: Path) -> None:
    text = inline_svg(svg, "a title")
    assert "#000000" not in text and "#ffffff" not in text
    assert "stroke: currentColor" in text and "fill: none" in text


def test_nothing_but_the_element_is_left_and_the_title_is_escaped(svg: Path) -> None:
    text = inline_svg(svg, 'a "title" <b>')
    assert text.startswith('<svg viewBox="0 0 216 144"') and text.endswith("</svg>")
    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in text
    assert re.findall(r"<style|<metadata|<!|http|<script", text) == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
