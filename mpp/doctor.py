"""Look over this machine before a run: ``mpp doctor [out=RUNS] [json=true]``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import MppError, exit_code_of

ABOUT = """
Check in seconds what training needs: versions, devices, shared memory, limits, speed and room of a folder, files
that appear whole or not at all, locks, two processes that meet. Every line is ok, warn or fail, with a fix.
"""


@config
class DoctorOptions:
    """Everything that ``mpp doctor`` can be told."""

    out: Path = Field(Path("."), description="folder that runs will be written to; nothing stays in it")
    json: bool = Field(False, description="print the findings as JSON")


class CheckFailed(MppError):
    """A check failed; the exit code is that of its kind."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(argv: Sequence[str]) -> None:
    """Parse ``argv``, check, print; raise ``CheckFailed`` with the exit code of the first failure."""
    options = parse(DoctorOptions, argv, prog="mpp doctor", about=ABOUT, positional=("out",))

    from mpp.training.checkup import checkup

    findings = []
    for finding in checkup(options.out):
        findings.append(finding)
        if not options.json:
            print(f"{finding.status:5} {finding.name:21} {finding.text}", flush=True)
            if finding.fix:
                print(f"{'':27} fix: {finding.fix}", flush=True)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        names = ", ".join(finding.name for finding in failed)
        raise CheckFailed(f"{len(failed)} of {len(findings)} checks failed: {names}", failed[0].exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
