"""An SVG file of matplotlib as a part of a page: without a header, names of its own, colours of the page."""

import html
import re
from pathlib import Path

from mpp.report.drawing import BLACK, FONTS, GRAY, LIGHT, WHITE

_COLORS = {
    f"stroke: {BLACK}": "stroke: currentColor",
    f"fill: {BLACK}": "fill: currentColor",
    f"fill: {WHITE}": "fill: none",
    f"stroke: {GRAY}": "stroke: var(--soft)",
    f"fill: {GRAY}": "fill: var(--soft)",
    f"stroke: {LIGHT}": "stroke: var(--line)",
}


def inline_svg(path: Path, title: str) -> str:
    """Return the element of an SVG file that ``drawing.save`` wrote, as HTML takes it."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<(style|metadata)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    for plain, themed in _COLORS.items():
        text = text.replace(plain, themed)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{path.stem}-", text)  # another picture has others of these names
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box, path
    body = text[text.index(">") + 1 :].rstrip()
    return f'<svg viewBox="{box[1]}" font-family="{FONTS}" role="img" aria-label="{html.escape(title)}">{body}'
