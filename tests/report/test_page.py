"""The page says what the comparison says, escapes every name, asks for nothing, and opens in a real browser."""

import base64
import html
import html.parser
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp.errors import DiskError
from mpp.evaluation.verdict import Comparison
from mpp.report.contents import draw_contents
from mpp.report.page import JSON, MARKDOWN, PAGE, render, strip, write_report

EVIL = "<script>alert(1)</script>\"'&amp;\x1b]0;<img src=x onerror=alert(2)>"
ARMS = {
    "masked": [60.1, 61.2, 62.4],
    "masked-with-a-name-longer-than-a-column-of-a-table-on-a-phone": [58.0, 59.5, 61.0],
    EVIL: [70.0, 71.0, 72.5],
    "scratch": [50.0, 51.5, 52.0],
}


class _Tags(html.parser.HTMLParser):
    """The names of all tags, all addresses, the rows of cells, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "tr", "table"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data + " "
        if self._in_cell:
            self.rows[-1][-1] += " ".join(data.split())


@pytest.fixture
def comparison(compared: Callable[..., Comparison], tiny_run: Path) -> Comparison:
    """Four arms with 5 labels and with all, hostile names, and a masked run with a checkpoint."""
    made = compared(
        {5: ARMS, None: ARMS},
        warnings=(f"a warning {EVIL}",),
        notes=(f"a note {EVIL}",),
        settings={"shards": EVIL},
        environment={"system": EVIL, "packages": {"torch": "2.15.0"}},
    )
    arms = tuple(replace(arm, words=EVIL, runs=(tiny_run,) if arm.name == "masked" else ()) for arm in made.arms)
    data = tuple(replace(facts, path=EVIL) for facts in made.data)
    return replace(made, arms=arms, data=data)


@pytest.fixture
def page(comparison: Comparison) -> str:
    return render(draw_contents(comparison))


def test_names_are_text_and_never_markup(page: str) -> None:
    read = _Tags(page)
    assert not {"script", "iframe", "object", "form", "base"} & set(read.tags)
    assert read.tags.count("title") == 1 and read.tags.count("img") == page.count("<img ") == 1
    assert read.text.count("<script>alert(1)</script>") >= 15
    assert {char for char in page if not char.isprintable()} <= {"\n", "\N{NO-BREAK SPACE}"}


def test_the_page_asks_for_nothing_but_itself(page: str) -> None:
    addresses = _Tags(page).addresses
    assert any(address.startswith("data:image/png") for address in addresses)
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)|@import|http://|https://", page) == []
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names)) > 0


def test_every_figure_of_the_results_is_in_the_row_of_its_arm(page: str, comparison: Comparison) -> None:
    shown = [row for row in _Tags(page).rows if len(row) == 8]
    assert len(shown) == len(comparison.rows)
    for row, cells in zip(comparison.rows, shown, strict=True):
        assert cells[1] == f"{row.top1.mean:.2f} [{row.top1.low:.2f}, {row.top1.high:.2f}]"
        assert [float(value) for value in cells[2].split()] == pytest.approx(row.top1_by_seed, abs=0.0051)
        if row.difference is None:
            assert cells[3:6] == ["", "", ""]
            continue
        numbers = [float(number) for number in re.findall(r"[-+][\d.]+", cells[3])]
        assert numbers == pytest.approx([row.difference.mean, row.difference.low, row.difference.high], abs=0.0051)
        for p, text in ((row.difference.p, cells[4]), (row.p_holm, cells[5])):
            assert p is not None
            assert p < float(text[1:]) if text.startswith("<") else float(text) == pytest.approx(p, rel=0.051)
    assert {tuple(cells[6:]) for cells in shown} == {("0.003", "8")}


def test_the_page_holds_verdict_warnings_notes_data_hash_and_command(page: str, comparison: Comparison) -> None:
    contents = draw_contents(comparison)
    text = " ".join(_Tags(page).text.split())
    shown = EVIL.replace("\x1b", "\\x1b")
    for said in (
        contents.verdict.headline,
        f"a warning {shown}",
        f"a note {shown}",
        contents.command,
        *contents.equality,
    ):
        assert said.replace("\x1b", "\\x1b") in text
    for figure in ("3,312", "17", "3,669", "ab" * 32, comparison.settings_sha256, "2.90e15", "102,400", "1,834"):
        assert figure in text
    assert text.index("a warning") < text.index(contents.verdict.headline) < text.index("a note")
    assert page.count("<svg viewBox") == 3 and "reached without learning" in text


def test_without_warnings_runs_and_variants_their_sections_are_left_out(compared: Callable[..., Comparison]) -> None:
    page = render(draw_contents(compared({5: {"masked": [60.0], "scratch": [50.0]}})))
    headings = re.findall(r"<h2>(.*)</h2>", page)
    assert headings == [
        *("Results", "Labels and cost", "What it cost", "What was compared", "Data, settings, environment"),
        "To cite and to repeat",
    ]
    assert 'class="strip"' not in page and "no interval: no claim" in page


def test_strips_are_on_one_axis_and_coloured_by_what_is_told(comparison: Comparison) -> None:
    row = comparison.rows[0]
    assert row.difference is not None and row.difference.low is not None
    told = strip(row, -20.0, 80.0)
    assert told is not None and told.look == "gained"
    assert (told.zero, told.low, told.mean) == (20, 20 + row.difference.low, 20 + row.difference.mean)
    lost = replace(row, difference=replace(row.difference, mean=-5.0, low=-6.0, high=-4.0))
    assert [strip(other, -20, 80).look for other in (lost, replace(row, p_holm=0.5))] == ["lost", "untold"]  # type: ignore[union-attr]
    assert strip(comparison.rows[3], -20, 80) is None
    assert strip(replace(row, difference=replace(row.difference, low=0.0, mean=0.0, high=0.0)), 0, 0) is not None


def test_the_report_is_three_files_and_small_pictures_and_equal_for_an_equal_comparison(
    comparison: Comparison, tmp_path: Path
) -> None:
    shown = write_report(comparison)
    assert shown.splitlines()[-1].startswith(str(tmp_path / PAGE))
    names = {PAGE, MARKDOWN, JSON, "label_curve.svg", "cost_accuracy.svg", "training_curves.svg", "reconstructions.png"}
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files.keys() == names
    assert max(len(files[name]) for name in names if name.endswith(".svg")) < 60_000
    assert json.loads(files[JSON])["verdict"]["headline"] in files[MARKDOWN].decode()
    write_report(comparison)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_no_file_holds_a_secret(comparison: Comparison, tmp_path: Path) -> None:
    address = "https://user:sentinel@host/set?signature=sentinel"
    secret = replace(
        comparison,
        settings={"shards": address, "hub_token": "sentinel"},
        environment={"api_key": "sentinel"},
        data=(replace(comparison.data[0], path=address),),
        arms=tuple(replace(arm, words=address) for arm in comparison.arms),
        warnings=(f"none in {address}",),
        notes=(f"none in {address}",),
    )
    shown = write_report(secret)
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert "sentinel" not in shown and "https://host/set" in shown
    assert not any(b"sentinel" in content for content in files)


def test_a_folder_that_cannot_be_written_is_one_error(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "label_curve.svg").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="cannot write"):
        write_report(comparison)
    assert not (tmp_path / PAGE).exists()


# Put into a copy of the page: what the browser made of it, as text that --dump-dom returns.
_WITNESS = """<script>
addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(image => image.naturalWidth),  // 0 where it could not be decoded
    drawn: [...document.querySelectorAll(".chart svg")].map(svg => svg.querySelectorAll("path").length),
    heights: [...document.querySelectorAll(".chart svg")].map(svg => svg.getBoundingClientRect().height),
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    overflow: document.documentElement.scrollWidth - innerWidth,
    scripts: document.scripts.length,
  }
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "NEES"
})
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_every_picture_and_asks_nobody(
    width: int, comparison: Comparison, tmp_path: Path, browse: Callable[..., tuple[str, str]]
) -> None:
    write_report(comparison)
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    assert allowed != text
    copy, frame = tmp_path / "copy.html", tmp_path / "frame.html"
    copy.write_text(allowed.replace("</head>", _WITNESS + "</head>"), encoding="utf-8")
    # a window of Chromium is at least 500 wide, a frame may be as narrow as a phone
    inner = html.escape(copy.read_text(encoding="utf-8"))
    report = "document.body.textContent = this.contentDocument.body.textContent"
    frame.write_text(f'<iframe style="width: {width}px; height: 900px" srcdoc="{inner}" onload="{report}"></iframe>')
    document, log = browse(frame, "--dump-dom", "--window-size=1400,1000")
    found = re.search("SEEN({.*})NEES", document)
    assert found, document[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["images"]) == 1 and min(seen["images"]) > 0
    assert len(seen["drawn"]) == 3 and min(seen["drawn"]) > 10 and min(seen["heights"]) > 150
    assert [name for name in seen["requests"] if not name.startswith("data:")] == []
    assert seen["scripts"] == 1 and seen["overflow"] <= 0
    assert "CONSOLE" not in log


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_browser_paints_the_page_in_the_colours_asked_for(
    scheme: str, comparison: Comparison, tmp_path: Path, browse: Callable[..., tuple[str, str]]
) -> None:
    write_report(comparison)
    picture = tmp_path / "page.png"
    number = {"dark": 0, "light": 1}[scheme]
    _, log = browse(tmp_path / PAGE, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={picture}")
    assert "CONSOLE" not in log
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    border, title = int(pixels[2, 2]), pixels[20:120, 10:400]
    assert border < 60 if scheme == "dark" else border > 200
    assert np.abs(title.astype(int) - border).max() > 120, "the title stands out"


def test_the_picture_in_the_page_is_the_file_beside_it(comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison)
    found = re.search(r'src="data:image/png;base64,([^"]*)"', (tmp_path / PAGE).read_text())
    assert found
    data = base64.b64decode(found[1])
    assert data == (tmp_path / "reconstructions.png").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size[0] > 300
    assert os.path.getsize(tmp_path / PAGE) < 600_000
