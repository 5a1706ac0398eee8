"""Report the images of a shard set that look alike: ``mpp duplicates SHARDS``."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of

ABOUT = """
Find the images of SHARDS that look alike, within and across its splits: test images that are also in train make a
comparison dishonest. Prints the counts and the largest groups, and writes all of them to
SHARDS/.mpp/near_duplicates.parquet (group, split, key, source, distance). The shards stay as they are.
"""


@config
class DuplicatesOptions:
    """Everything that ``mpp duplicates`` can be told."""

    shards: Path = Field(description="folder of shards")
    distance: int = Field(4, ge=0, le=7, description="bits that may differ, of 64 along rows and of 64 along columns")
    workers: int | None = Field(None, ge=0, description="processes; 0 works in this one; default: one a CPU")


def run(argv: Sequence[str]) -> None:
    """Parse ``argv`` and report."""
    options = parse(DuplicatesOptions, argv, prog="mpp duplicates", about=ABOUT, positional=("shards",))

    from mpp.shards.engines import run_tasks
    from mpp.shards.near_duplicates import report_near_duplicates

    report_near_duplicates(options.shards, options.distance, partial(run_tasks, workers=options.workers))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
