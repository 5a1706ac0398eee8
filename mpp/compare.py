"""Say what pretraining was worth: ``mpp compare --config configs/compare/FILE shards=... out=...``"""

from collections.abc import Sequence

from mpp.config import parse
from mpp.errors import exit_code_of
from mpp.processes import stopped_by_sigterm

ABOUT = """Run what is missing of arms x seeds x labels per class, print the table and write OUT/report.html, .md and
.json: mean, 95 % interval, paired difference to scratch, costs. The same command continues one that was cut off."""


def run(argv: Sequence[str]) -> None:
    """Parse the settings, compare, print the table and write the report."""
    from accelerate import PartialState

    from mpp.evaluation.comparison import compare
    from mpp.evaluation.plan import CompareConfig
    from mpp.report.page import write_report
    from mpp.training.devices import leave_together

    settings = parse(CompareConfig, argv, prog="mpp compare", about=ABOUT)
    with stopped_by_sigterm():
        comparison = compare(settings)
        if PartialState().is_main_process:
            print(write_report(comparison))
        leave_together()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
