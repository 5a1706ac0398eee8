"""Take a step again that a run has skipped: ``mpp replay RUN/replay-000000007.json``"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of

ABOUT = "Take a step again that a run has skipped: which samples and which gradients are not finite."
_SHOWN = 20


@config
class ReplayConfig:
    """Which step to take again."""

    file: str = Field(description="replay-STEP.json in the folder of a run")


def run(argv: Sequence[str]) -> None:
    """Parse the settings, take the step again, say what was found."""
    from mpp.training.replay import replay

    settings = parse(ReplayConfig, argv, prog="mpp replay", about=ABOUT, positional=("file",))
    found = replay(Path(settings.file))
    for title, judged in (("recorded", found.recorded), ("replayed", found.now)):
        print(f"{title}: step {judged.step}, loss {judged.loss!r}, gradient norm {judged.norm!r}")
    print(f"losses of the samples alone, {min(_SHOWN, len(found.samples))} of {len(found.samples)}:")
    for name, loss in found.samples[:_SHOWN]:
        print(f"  {loss:<12.6g} {name}")
    print(f"gradients that are not finite: {len(found.parameters)} parameters")
    for name in found.parameters[:_SHOWN]:
        print(f"  {name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
