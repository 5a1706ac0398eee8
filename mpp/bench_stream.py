"""Measure a stream without a model: ``mpp bench-stream SHARDS [key=value ...]``."""

import sys
from collections.abc import Sequence

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import exit_code_of
from mpp.stream.loader import StreamConfig
from mpp.stream.mixture import Shards, open_mixture
from mpp.stream.speed import Speed, measure_speed
from mpp.stream.views import ViewConfig

ABOUT = """
Read, decode and crop the images of SHARDS as pretraining would, without a model: images per second of a core by stage,
of all workers together, and which stage bounds them.
"""


@config
class BenchStreamOptions:
    """Everything that ``mpp bench-stream`` can be told."""

    shards: Shards = Field(
        description="folder that mpp-shard or mpp index wrote, WebDataset tars, a URL of such, or a list of them to mix"
    )
    split: str = Field("train", description="split of the shard set")
    image_size: tuple[int, int] = Field((224, 224), description="height and width of the views, pixels")
    view: ViewConfig = ViewConfig()
    batch: int = Field(64, gt=0, description="images of a micro-batch")
    stream: StreamConfig = StreamConfig()
    seconds: float = Field(3.0, gt=0, description="for each stage; longer is steadier")


def run(argv: Sequence[str]) -> None:
    """Parse ``argv``, measure, print a table and what bounds the stream."""
    options = parse(BenchStreamOptions, argv, prog="mpp bench-stream", about=ABOUT, positional=("shards",))
    shards = open_mixture(options.shards, options.split)
    batch = min(options.batch, shards.samples)
    speed = measure_speed(
        shards, options.view, options.image_size, batch=batch, settings=options.stream, seconds=options.seconds
    )
    print("\n".join(_lines(speed)))


def _lines(speed: Speed) -> list[str]:
    """Return the table and the verdict."""
    stages = [("read", speed.read), ("decode", speed.decode), ("view", speed.view), ("batch", speed.batch)]
    rows = [("stage", "us/image", "images/s/core", "share")]
    for name, seconds in [*stages, ("a worker, all", speed.worker)]:
        rate = f"{1 / seconds:,.0f}" if seconds > 1e-9 else "-"
        rows.append((name, f"{1e6 * seconds:.1f}", rate, f"{seconds / speed.worker:.0%}"))
    lines = [f"{name:15}{micros:>10}{rate:>15}{share:>7}" for name, micros, rate, share in rows]
    arriving = 1 / speed.stream
    each = f", {arriving / speed.workers:,.0f} each" if speed.workers > 1 else ""
    lines.append(f"stream, stream.workers={speed.workers}: {arriving:,.0f} images/s{each}")
    if speed.workers:
        lines.append(
            f"hand-off: {1e6 * speed.hand_off:.1f} us of the main process an image, at most {1 / speed.hand_off:,.0f}/s"
        )
    return [*lines, f"bound by: {speed.bound}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
