"""Look at a shard set: ``mpp look SHARDS [PAGE.html]``"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of

ABOUT = """
Write one HTML page about the shard set in SHARDS: counts, sizes, formats, labels, refused images with their
reasons, and a contact sheet. The page needs nothing but itself, and shows images of the set to whoever opens it.
"""


@config
class LookOptions:
    """Which set to look at, and where the page goes."""

    shards: Path = Field(description="folder of shards")
    page: Path = Field(Path("look.html"), description="file to write; only such a page is replaced")


def run(argv: Sequence[str]) -> None:
    """Parse the settings and write the page."""
    options = parse(LookOptions, argv, prog="mpp look", about=ABOUT, positional=("shards", "page"))

    from mpp.report.look import write_page

    write_page(options.shards, options.page)
    print(options.page)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
