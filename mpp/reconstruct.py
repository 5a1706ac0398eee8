"""Draw what a masked-patch run predicts: ``mpp reconstruct RUN [PICTURE]``"""

from collections.abc import Sequence

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of

ABOUT = "Draw original, corrupted and predicted images of a run of masked patch prediction."


@config
class ReconstructConfig:
    """Which run to draw, and where to."""

    run: str = Field(description="run folder of mpp pretrain")
    picture: str = Field("reconstructions.png", description="file to write, .png or .svg")
    images: int = Field(8, gt=0, description="images to show, spread over the shards")


def run(argv: Sequence[str]) -> None:
    """Parse the settings and draw."""
    from mpp.report.reconstructions import draw_reconstructions

    settings = parse(ReconstructConfig, argv, prog="mpp reconstruct", about=ABOUT, positional=("run", "picture"))
    draw_reconstructions(settings.run, settings.picture, settings.images)
    print(settings.picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
