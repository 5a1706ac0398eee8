"""Check a shard set against its records: ``mpp verify OUT [full=true]``."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import DataError, exit_code_of

ABOUT = """
Compare every shard of OUT with its record: sizes and counts; with full=true also every hash and every image.
"""


@config
class VerifyOptions:
    """Everything that ``mpp verify`` can be told."""

    out: Path = Field(description="folder of shards")
    full: bool = Field(False, description="also compare hashes and CRCs, and decode every image")
    workers: int | None = Field(None, ge=0, description="processes; 0 works in this one; default: one a CPU")


def run(argv: Sequence[str]) -> None:
    """Parse ``argv``, verify, print what was found; raise ``DataError`` where anything is wrong."""
    options = parse(VerifyOptions, argv, prog="mpp verify", about=ABOUT, positional=("out",))

    from mpp.shards.engines import run_tasks
    from mpp.shards.verification import verify

    report = verify(options.out, options.full, partial(run_tasks, workers=options.workers))
    print(f"{options.out}: {report.shards} shards, {report.samples:,} samples, {report.bytes:,} bytes")
    for problem in report.problems:
        print(f"  {problem}")
    if report.problems:
        fix = "delete the named shards and run the mpp-shard command that wrote them again; get tars of others again"
        raise DataError(f"{options.out}: {len(report.problems)} problem(s)", fix=fix)
    print("every hash and every image is as recorded" if options.full else "every size and count is as recorded")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
