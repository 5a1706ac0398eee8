"""Fine-tune and test a backbone: ``mpp transfer --config configs/transfer/FILE backbone=RUN shards=... out=...``"""

from collections.abc import Sequence

from mpp.config import parse
from mpp.errors import exit_code_of
from mpp.processes import stopped_by_sigterm

ABOUT = """Replace the head of a pretrained backbone by a zero D x K layer, fine-tune it on labelled shards and test it.
Adds one JSON line to OUT/results.jsonl. Also: accelerate launch mpp/transfer.py."""


def run(argv: Sequence[str]) -> None:
    """Parse the settings, transfer, print and append the result."""
    from mpp.evaluation.finetune import transfer
    from mpp.evaluation.recipe import TransferConfig
    from mpp.training.devices import leave_together

    settings = parse(TransferConfig, argv, prog="mpp transfer", about=ABOUT)
    with stopped_by_sigterm():
        transfer(settings)
        leave_together()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
