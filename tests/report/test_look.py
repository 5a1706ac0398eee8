"""The page says what the set holds, escapes every name, asks for nothing, and opens in a real browser."""

import html.parser
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp import shard
from mpp.errors import DataError
from mpp.report.look import MARK, SHEET, render, show_percent, write_page

SHOWN = SHEET // 2 + 20  # the smaller split has no more
EVIL = ["<script>alert(1)<", "\"quoted\" 'twice'", "ünï 猫", "a&amp;b<title>"]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 80 images of several shapes, with two refused ones, under names that would break a page."""
    root = tmp_path_factory.mktemp("<b>evil'")
    for number in range(80):
        folder = root / "images" / ("test" if number % 4 == 3 else "train") / EVIL[number // 4 % 4]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30 + number % 7, 20 + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'<img src=x onerror="alert({number})">.jpg')
    (folder / "<i>broken.jpg").write_bytes(b"\xff\xd8\xff<script>document.title='owned'</script>")
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb"):
        pass
    command = [str(root / "images"), str(root / "<u>set"), "workers=0", "resize=24", "labels=folders", "max_refused=1"]
    assert shard.main(command) == 0
    return root / "<u>set"


class _Tags(html.parser.HTMLParser):
    """The names of all tags, all addresses, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_names_are_text_and_never_markup(evil: Path) -> None:
    page = render(evil)
    read = _Tags(page)
    assert not {"script", "iframe", "object", "form", "b>", "i", "u", "base"} & set(read.tags)
    assert read.tags.count("title") == 1 + page.count("<rect ")
    for name in (*EVIL, "<u>set", "<i>broken.jpg", "caf\\xe9.jpg", '<img src=x onerror="alert('):
        assert name in read.text, name
    assert {char for char in page if not char.isprintable()} <= {"\n"}


def test_the_page_asks_for_nothing_but_itself(evil: Path) -> None:
    page = render(evil)
    addresses = _Tags(page).addresses
    assert len(addresses) > SHOWN
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert re.findall(r"url\(|@import|http://|https://", page) == []


def test_the_page_says_what_the_set_holds(evil: Path) -> None:
    text = " ".join(_Tags(render(evil)).text.split())
    assert "images 80 97.6 % of 82 listed" in text
    assert "refused 2 2.4 %, by 2 reasons" in text
    assert "train 60 0 1" in text and "test 20 2 1" in text
    assert "4 classes of 20 images each" in text
    assert "Measured on all 80 images" in text and "as found" in text
    assert "corrupt 1 50 %" in text and "empty 1 50 %" in text
    assert "resized 75 93.8 %" in text


def test_an_equal_set_gives_an_equal_page(evil: Path) -> None:
    assert render(evil) == render(evil)


def test_a_large_set_is_measured_on_a_part_and_says_so(tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpp.report.look.SAMPLED", 45)
    monkeypatch.setattr("mpp.report.look.SHEET", 10)
    page = render(tiny_shards)
    assert "Measured on 45 images, evenly spaced over the 91." in page
    assert page.count("<figure") == 10


def test_a_set_without_labels_has_no_balance(bare_tiny_shards: Path) -> None:
    page = render(bare_tiny_shards)
    assert "images only" in page and "<h2>Labels</h2>" not in page
    assert page.count("<figure") == SHEET


def test_a_set_of_which_everything_was_refused_is_all_refusals(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").touch()
    assert shard.main([str(tmp_path / "images"), str(tmp_path / "set"), "workers=0", "max_refused=1"]) == 0
    page = render(tmp_path / "set")
    assert "none was taken" in page and "0 bytes" in page and "<figure" not in page


def test_a_damaged_set_is_refused_and_no_page_is_written(evil: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(evil, damaged)
    os.truncate(damaged / "train/train-000000.tar", 5000)
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        write_page(damaged, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (1e-6, "< 0.1 %"), (0.99999, "> 99.9 %"), (0.5, "50 %"), (0.123, "12.3 %")],
)
def test_what_is_not_quite_nothing_or_all_is_not_shown_as_such(share: float, text: str) -> None:
    assert show_percent(share) == text


# Put into a copy of the page: what the browser made of it, as text that --dump-dom returns.
_WITNESS = """<script>
addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(image => image.naturalWidth),  // 0 where it could not be decoded
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    overflow: document.documentElement.scrollWidth - innerWidth,
    scripts: document.scripts.length,
    title: document.title,
  }
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "NEES"
})
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1280])  # a window of Chromium is at least 500 wide
def test_a_browser_shows_every_image_and_asks_nobody(
    width: int, evil: Path, tmp_path: Path, browse: Callable[..., tuple[str, str]]
) -> None:
    page, copy = tmp_path / "page.html", tmp_path / "copy.html"
    write_page(evil, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(MARK)
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    assert allowed != text
    copy.write_text(allowed.replace("</head>", _WITNESS + "</head>"), encoding="utf-8")
    document, log = browse(copy, "--dump-dom", f"--window-size={width},900")
    found = re.search("SEEN({.*})NEES", document)
    assert found, document[:2000]
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["images"]) == text.count("<img ") == SHOWN + 4 and min(seen["images"]) > 0
    assert [name for name in seen["requests"] if not name.startswith(("data:", copy.as_uri()))] == []
    assert seen["scripts"] == 1 and seen["title"] == "<u>set: 80 images" and seen["overflow"] <= 0
    assert "CONSOLE" not in log


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_browser_paints_the_page_in_the_colours_asked_for(
    scheme: str, evil: Path, tmp_path: Path, browse: Callable[..., tuple[str, str]]
) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    write_page(evil, page)
    number = {"dark": 0, "light": 1}[scheme]
    _, log = browse(page, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={picture}")
    assert "CONSOLE" not in log
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    border, names = int(pixels[2, 2]), pixels[20:120, 10:400]
    assert border < 60 if scheme == "dark" else border > 200
    assert np.abs(names.astype(int) - border).max() > 120, "the title stands out"
