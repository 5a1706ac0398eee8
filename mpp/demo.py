"""The whole road on real images in minutes, without a download: ``mpp demo [OUT]``

Writes scikit-learn's 1,797 handwritten digits as image files and types the four commands that a user would.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mpp.config import config, parse
from mpp.errors import ConfigError, MppError, exit_code_of

ABOUT = """Shard, pretrain, transfer and compare on scikit-learn's handwritten digits: real images, no download.
The same command continues a demo that was cut off."""
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_TEST_EVERY = 4  # every fourth digit is for testing


@config
class DemoConfig:
    """Where the demo writes."""

    out: str = Field("runs/demo", description="folder of images, shards, runs and tables")


def run(argv: Sequence[str]) -> None:
    """Parse the settings, write the images, type the commands."""
    out = Path(parse(DemoConfig, argv, prog="mpp demo", about=ABOUT, positional=("out",)).out)
    if not CONFIGS.is_dir():
        raise ConfigError(f"no recipes at {CONFIGS}", fix="run the demo from a clone installed by pip install -e .")
    write_digits(out / "images")
    for command in road(out):
        print(f"\n$ {shlex.join(command)}", flush=True)
        if code := subprocess.call([sys.executable, "-m", "mpp.cli", *command[1:]]):
            raise DemoError(code, shlex.join(command))
    _farewell(out)


class DemoError(MppError):
    """A command of the demo failed and has said why; the demo ends with its exit code."""

    def __init__(self, code: int, command: str) -> None:
        super().__init__(f"this command of the demo failed: {command}")
        self.exit_code = code


def road(out: Path) -> list[list[str]]:
    """Return the demo's own commands; its comparison finds the masked run of its first seed finished."""
    comparison = f"{out}/comparison"
    masked, picture = f"{comparison}/pretrain/masked-seed0", f"{out}/reconstructions.png"
    return commands(f"{out}/images", f"{out}/shards", masked, picture, comparison, "digits.yaml")


def commands(images: str, shards: str, masked: str, picture: str, comparison: str, recipe: str) -> list[list[str]]:
    """Return the commands from a folder of images to a table, by the recipe of that name in configs/."""
    where = f"shards={shards}"
    return [
        ["mpp", "shard", images, shards],
        ["mpp", "pretrain", "--config", str(CONFIGS / "pretrain" / recipe), where, f"out={masked}"],
        ["mpp", "reconstruct", masked, picture],
        ["mpp", "compare", "--config", str(CONFIGS / "compare" / recipe), where, f"out={comparison}"],
    ]


def write_digits(folder: Path) -> None:
    """Write the digits as FOLDER/{train,test}/DIGIT/NUMBER.png, 8 x 8 pixels, 17 shades of gray."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number % _TEST_EVERY == _TEST_EVERY - 1 else "train"
        path = folder / split / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)


def _farewell(out: Path) -> None:
    print(f"\nThe table above, its curves and what it cost: {out / 'comparison' / 'report.html'};")
    print(f"what the model predicts is {out / 'reconstructions.png'}.")
    print("\nThe same with your own images, at 32 x 32 pixels to begin with:\n")
    for command in commands(
        "YOUR_IMAGES", "YOUR_SHARDS", "YOUR_RUN", "YOUR_PICTURE.png", "YOUR_TABLES", "cifar10_small.yaml"
    ):
        print(f"  {shlex.join(command)}")
    print("\nFolders may be flat; only the last command needs labels: YOUR_IMAGES/{train,test}/CLASS.")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
