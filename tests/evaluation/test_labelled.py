"""Every layout of a labelled dataset goes through `mpp transfer` once its protocol names it; a set is written once."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mpp.config import resolve
from mpp.evaluation.labelled import RECORD, ready
from mpp.evaluation.protocols import LabelledData
from mpp.shards.indexing import open_any
from mpp.stream.reader import ShardReader
from mpp.transfer import main

NAMES = ["red", "green", "blue"]
FAST = ["steps=2", "global_batch=12", "stream.workers=0", "view.crop=pad", "backbone=scratch"]
FAST += ["vit.name=vit_tiny_patch16_224", "vit.image_size=[8,8]", "vit.patch_size=2", "vit.width=16"]
FAST += ["vit.depth=1", "vit.heads=2", "vit.pool=mean"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    """Return an image of 8 x 8 noisy pixels whose hue is that of class ``number`` % 3."""
    pixels = np.random.RandomState(number).randint(0, 120, (8, 8, 3)).astype(np.uint8)
    pixels[..., number % 3] += 100
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def table(first: int, count: int, label: Any, feature: Any, image: str = "image") -> datasets.Dataset:
    numbers = range(first, first + count)
    columns = {image: [{"bytes": png(number), "path": None} for number in numbers]}
    columns["label"] = [label(number) for number in numbers]
    return datasets.Dataset.from_dict(columns, features=datasets.Features({image: datasets.Image(), "label": feature}))


def write(root: Path, splits: dict[str, tuple[int, int]], label: Any, feature: Any, **more: Any) -> Path:
    """Write parquet files as they lie on the Hub, of ``splits``: first image and number of images."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, (first, count) in splits.items():
        table(first, count, label, feature, **more).to_parquet(str(root / f"data/{split}-00000-of-00001.parquet"))
    return root


USUAL = {"train": (0, 24), "test": (100, 12)}


def class_labels(root: Path) -> Path:
    return write(root, USUAL, lambda number: number % 3, datasets.ClassLabel(names=NAMES))


def plain_numbers(root: Path) -> Path:
    return write(root, USUAL, lambda number: number % 3, datasets.Value("int64"), image="img")


def plain_names(root: Path) -> Path:
    return write(root, USUAL, lambda number: NAMES[number % 3], datasets.Value("string"))


def measured(root: Path) -> Path:
    return write(root, USUAL, lambda number: 5.0 + number % 3, datasets.Value("float64"))


def nested(root: Path) -> Path:
    return write(root, USUAL, lambda number: {"kind": number % 3}, {"kind": datasets.ClassLabel(names=NAMES)})


def three_splits(root: Path) -> Path:
    splits = {"train": (0, 15), "validation": (15, 9), "test": (100, 12)}
    return write(root, splits, lambda number: number % 3, datasets.ClassLabel(names=NAMES))


def folders(root: Path) -> Path:
    for split, (first, count) in USUAL.items():
        for number in range(first, first + count):
            file = root / split / NAMES[number % 3] / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
    return root


def tars(root: Path) -> Path:
    """Write shards of others, as those of VTAB's tasks on the Hub."""
    for split, (first, count) in USUAL.items():
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for number in range(first, first + count):
                for kind, data in (("png", png(number)), ("cls", b"%d" % (number % 3))):
                    member = tarfile.TarInfo(f"s{number:07d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], list[str], int]] = {
    "ClassLabel": (class_labels, [], 24),
    "numbers": (plain_numbers, [], 24),
    "names": (plain_names, [], 24),
    "bins of a measure": (measured, ["data.bins=[5.5,6.5]"], 24),
    "field of a column": (nested, ["data.label=label.kind"], 24),
    "slices and a sum": (three_splits, ["data.train='train[:80%]+validation'", "data.test='test[3:]'"], 21),
    "folders": (folders, [], 24),
    "tars": (tars, ["data.label=cls"], 24),
    "a drawn part": (class_labels, ["data.limit=10"], 10),
}


def words(source: Path, tmp_path: Path, *more: str) -> list[str]:
    given = [f"data.source={source}", "data.classes=3", f"shards={tmp_path / 'set'}", f"out={tmp_path / 'out'}"]
    return [*FAST, *given, *more]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_same_labelled_shards_and_is_fine_tuned(
    tmp_path: Path, layout: str, capfd: pytest.CaptureFixture[str]
) -> None:
    build, more, count = LAYOUTS[layout]
    assert main(words(build(tmp_path / "source"), tmp_path, *more)) == 0, capfd.readouterr().err
    for split, expected in (("train", count), ("test", 9 if "sum" in layout else 12)):
        shards = open_any(str(tmp_path / "set"), split)
        assert shards.samples == expected
        reader = ShardReader(shards)
        for number, label in enumerate(reader.labels().tolist()):
            pixels = np.asarray(Image.open(io.BytesIO(reader.read(number).image)))
            assert pixels.mean((0, 1)).argmax() == hue(layout, label)
    result = json.loads((tmp_path / "out/results.jsonl").read_text())
    assert result["test_images"] == (9 if "sum" in layout else 12)


def hue(layout: str, label: int) -> int:
    """Return the hue of a class: names that no type orders are in alphabetical order."""
    return NAMES.index(sorted(NAMES)[label]) if layout in ("names", "folders") else label
