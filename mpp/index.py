"""Index WebDataset tars written by others, once: ``mpp index TARS OUT [key=value ...]``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of

ABOUT = """
Read the tars of TARS once and write into OUT where their images lie, and their hashes; OUT is then a set like those of
mpp-shard. The tars stay where they are and as they are. TARS is a folder, a tar, a glob, or a pattern with braces as
WebDataset has it, also of URLs:

    mpp index data/imagenet OUT
    mpp index 'data/train-{000000..000146}.tar' OUT
    mpp index 'https://host/x-{000..011}.tar' OUT labels=none

The same command again does nothing, unless a tar has another size or time.
"""


@config
class IndexOptions:
    """Everything that ``mpp index`` can be told."""

    tars: str = Field(description="folder of tars, a tar, a glob, or a pattern with braces, of paths or URLs")
    out: Path = Field(description="folder for the index, about 16 to 32 bytes an image")
    split: str | None = Field(
        None, description="split of all tars; default: what train, val, test in their names say, else train"
    )
    labels: Literal["auto", "none"] = Field("auto", description="auto: .cls members, where all samples have one")
    image: str | None = Field(None, description="extension of the images, where samples have several; default: any")
    workers: int | None = Field(None, ge=0, description="processes; 0 works in this one; default: one a CPU")


def run(argv: Sequence[str]) -> None:
    """Parse ``argv``, index, print what was found."""
    options = parse(IndexOptions, argv, prog="mpp index", about=ABOUT, positional=("tars", "out"))

    from mpp.shards.indexing import index_tars, plan_index
    from mpp.shards.shardset import open_shards, split_names
    from mpp.sources.splits import split_name

    split = None if options.split is None else split_name(options.split, "split=")
    plan = plan_index(options.tars, split=split, labels=options.labels, image=options.image)
    index_tars(plan, options.out, options.workers)
    for name in split_names(options.out):
        shards = open_shards(options.out, name)
        classes = "no labels" if shards.classes is None else f"{len(shards.classes):,} classes"
        print(f"{options.out}: {name}, {len(shards.shards):,} shards, {shards.samples:,} samples, {classes}")
    print(f"next: mpp pretrain shards={options.out} out=runs/first")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
