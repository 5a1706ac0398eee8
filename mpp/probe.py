"""Measure a frozen backbone: ``mpp probe backbone=RUN shards=LABELLED out=...``"""

from collections.abc import Sequence

from mpp.config import parse
from mpp.errors import exit_code_of
from mpp.processes import stopped_by_sigterm

ABOUT = """Few-shot linear regression, nearest neighbours and a linear probe on the frozen features of a backbone
of ours or of timm. Prints a table and adds one JSON line a probe to OUT/probes.jsonl.
Also: accelerate launch mpp/probe.py."""


def run(argv: Sequence[str]) -> None:
    """Parse the settings, probe, print the table."""
    from mpp.evaluation.probing import ProbeConfig, probe, table

    settings = parse(ProbeConfig, argv, prog="mpp probe", about=ABOUT)
    with stopped_by_sigterm():
        results = probe(settings)
    if results:
        print(f"{results[0].origin}, on {results[0].test_images} images of {results[0].dataset}\n\n{table(results)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
