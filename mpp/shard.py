"""Turn a corpus of images into shards: ``mpp-shard SOURCE OUT [key=value ...]``."""

import sys
from collections.abc import Sequence

from mpp.config import parse
from mpp.errors import exit_code_of
from mpp.shards.layout import ShardOptions

ABOUT = """
Write the images of SOURCE (a folder of images, of class folders, of parquet files, or a Hub dataset OWNER/NAME)
as tar shards into the folder OUT. Killed at any moment, the same command continues and ends with the same bytes.
"""


def run(argv: Sequence[str]) -> None:
    """Parse ``argv`` and write the shards."""
    options = parse(ShardOptions, argv, prog="mpp-shard", about=ABOUT, positional=("source", "out"))

    from mpp.shards.sharding import shard_corpus

    shard_corpus(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
