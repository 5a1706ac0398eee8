"""What ``mpp-shard`` and its parts can be told."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mpp.config import config
from mpp.shards.engines import Engine

OUT = "folder for the shards, or a URL that fsspec knows (s3://BUCKET/NAME)"
WORK = "local folder for what is needed until all is written; OUT itself, or ./NAME.work for a URL"
WORKERS = "processes of this machine; 0 works in this one; default: one a CPU"
ENGINE = "who writes the shards; default: this machine"
MAX_REFUSED = "fraction of refused images that is still a success"


@config
class PlanOptions:
    """Everything that ``mpp-shard plan`` can be told."""

    source: str = Field(
        min_length=1,
        description="folder of images, parquet files or archives; archive; manifest (.csv .tsv .jsonl .parquet); - for "
        "a list of paths on standard input; .yaml with `sources: [{source, labels, image, weight, limit}, ...]`; Hub "
        "dataset OWNER/NAME",
    )
    out: str = Field(min_length=1, description=OUT)
    work: Path | None = Field(None, description=WORK)
    labels: str = Field("auto", description="auto, none, folders, cls, the name of a column, or a mapping FILE")
    image: str | None = Field(None, description="column of images or paths, or extension in archives; default: found")
    dedupe: Literal["none", "exact"] = Field("none", description="exact: of equal files only the first listed is taken")
    shard_samples: int = Field(10_000, gt=0, description="most samples in a shard")
    shard_bytes: int = Field(256_000_000, gt=0, description="most source bytes in a shard")
    resize: int | None = Field(None, gt=0, description="shorter side of stored images, pixels; never enlarges")
    format: Literal["auto", "jpg", "png"] = Field("auto", description="stored format; auto: jpg where any source is")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of images that must be encoded again")
    check: Literal["decode", "header"] = Field("decode", description="how JPEGs that are kept as they are get checked")
    background: tuple[int, int, int] = Field((255, 255, 255), description="what shows through alpha, [R, G, B]")
    animated: Literal["first", "refuse"] = Field("first", description="the first frame of animations, or none")
    formats: tuple[str, ...] = Field((), description="formats of Pillow to take beside the usual ones, e.g. [TGA]")
    max_pixels: int = Field(50_000_000, gt=0, description="images with more pixels are refused")
    min_side: int = Field(1, gt=0, description="images with a shorter side below this are refused, pixels")
    max_aspect: float = Field(1000.0, ge=1, description="images longer than this, longer / shorter side, are refused")
    seed: int = Field(0, description="seed of the order of the samples")
    workers: int | None = Field(None, ge=0, description=WORKERS)

    def fixed(self) -> dict[str, Any]:
        """Return the options that decide the bytes of the shards; the others may change between runs."""
        free = ("source", "out", "work", "workers", "max_refused", "engine")
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in free}


@config
class ShardOptions(PlanOptions):
    """Everything that ``mpp-shard`` can be told."""

    max_refused: float = Field(0.01, ge=0, le=1, description=MAX_REFUSED)
    engine: Engine | None = Field(None, description=ENGINE)


@config
class RunOptions:
    """Everything that ``mpp-shard run`` can be told."""

    out: str = Field(min_length=1, description=OUT)
    work: Path | None = Field(None, description=WORK)
    task: str = Field(
        "0/1", pattern=r"^\d+/[1-9]\d*$", description="which part of the shards, I/N with I from 0 to N-1"
    )
    workers: int | None = Field(None, ge=0, description=WORKERS)
    engine: Engine | None = Field(None, description=ENGINE)


@config
class FinalizeOptions:
    """Everything that ``mpp-shard finalize`` can be told."""

    out: str = Field(min_length=1, description=OUT)
    work: Path | None = Field(None, description=WORK)
    max_refused: float = Field(0.01, ge=0, le=1, description=MAX_REFUSED)


@config
class StatusOptions:
    """Everything that ``mpp-shard status`` can be told."""

    out: str = Field(min_length=1, description=OUT)
    work: Path | None = Field(None, description=WORK)
