"""Every layout of a labelled dataset goes through `mpp transfer` once its protocol names it; a set is written once."""

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mpp import probe, transfer
from mpp.config import resolve
from mpp.errors import ConfigError, DataError, HangError
from mpp.evaluation import labelled
from mpp.evaluation.labelled import RECORD, ready
from mpp.evaluation.protocols import LabelledData, open_labelled
from mpp.plain_yaml import read_yaml
from mpp.shards.indexing import open_any
from mpp.shards.options import ShardOptions
from mpp.shards.outputs import locked
from mpp.shards.sharding import shard_corpus
from mpp.stream.reader import ShardReader
from mpp.verify import main as verify

NAMES = ["red", "green", "blue"]
CLASSES = datasets.ClassLabel(names=NAMES)
HUES = [number % 3 for number in range(24)]
SPLITS = {"train": HUES, "test": HUES[:12]}
BY_NAME = {split: [NAMES[hue] for hue in hues] for split, hues in SPLITS.items()}
THREE = {"train": HUES[:15], "validation": HUES[:9], "test": HUES[:12]}

Words = Callable[..., list[str]]
Build = Callable[..., Path]


def folders(root: Path, png: Callable[[int], bytes]) -> Path:
    for split, hues in SPLITS.items():
        for number, hue in enumerate(hues):
            file = root / split / NAMES[hue] / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
    return root


def tars(root: Path, png: Callable[[int], bytes]) -> Path:
    """Write shards of others, as VTAB's tasks lie on the Hub."""
    for split, hues in SPLITS.items():
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for number, hue in enumerate(hues):
                for kind, data in (("png", png(number)), ("cls", b"%d" % hue)):
                    member = tarfile.TarInfo(f"s{number:07d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root


LAYOUTS: dict[str, tuple[dict[str, list[Any]] | Any, Any, list[str], tuple[int, int], bool]] = {
    "ClassLabel": (SPLITS, CLASSES, [], (24, 12), False),
    "numbers": (SPLITS, datasets.Value("int64"), [], (24, 12), False),
    "names": (BY_NAME, datasets.Value("string"), [], (24, 12), True),
    "bins": (
        {split: [5.0 + hue for hue in hues] for split, hues in SPLITS.items()},
        datasets.Value("float64"),
        ["data.bins=[6.0,6.5]"],
        (24, 12),
        False,
    ),
    "a field of a column": (
        {split: [{"hue": hue} for hue in hues] for split, hues in SPLITS.items()},
        {"hue": datasets.Value("int32")},
        ["data.label=label.hue"],
        (24, 12),
        False,
    ),
    "slices": (THREE, CLASSES, ["data.train='train[:80%]+validation'", "data.test='test[3:]'"], (21, 9), False),
    "a drawn part": (SPLITS, CLASSES, ["data.limit=10"], (10, 12), False),
    "folders": (folders, None, [], (24, 12), True),
    "tars": (tars, None, ["data.label=cls"], (24, 12), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_labelled_shards_and_is_fine_tuned(
    parquet: Build, words: Words, png: Callable[[int], bytes], hub_cache: Path, tmp_path: Path, layout: str
) -> None:
    splits, feature, more, counts, alphabetical = LAYOUTS[layout]
    source = splits(tmp_path / "source", png) if callable(splits) else parquet(splits, feature)
    assert transfer.main(words(source, *more)) == 0
    order = sorted(NAMES) if alphabetical else NAMES
    for split, count in zip(("train", "test"), counts, strict=True):
        shards = open_any(str(tmp_path / "set"), split)
        assert shards.samples == count
        reader = ShardReader(shards)
        for number, label in enumerate(reader.labels().tolist()):
            pixels = np.asarray(Image.open(io.BytesIO(reader.read(number).image)))
            assert order[label] == NAMES[int(pixels.mean((0, 1)).argmax())]
    result = json.loads((tmp_path / "out/results.jsonl").read_text())
    assert result["test_images"] == counts[1]
    assert result["settings"]["data"]["source"] == str(source)


PROTOCOLS = Path(__file__).resolve().parents[2] / "configs/transfer"
NAMED = sorted(str(file.relative_to(PROTOCOLS)) for file in PROTOCOLS.rglob("*.yaml") if "source:" in file.read_text())


def as_on_the_hub(root: Path, settings: LabelledData, png: Callable[[int], bytes]) -> Path:
    """Write a tiny dataset in the layout that a protocol names: tars of others, or parquet files with a ClassLabel."""
    values = list(range(round(max(settings.bins)) + 2)) if settings.bins else list(range(settings.classes))
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        image = png(("train", "validation", "test").index(split))
        if settings.label == "cls":
            with tarfile.open(root / split / "0.tar", "w") as tar:
                for number, value in enumerate(values):
                    for kind, data in (("png", image), ("cls", b"%d" % value)):
                        member = tarfile.TarInfo(f"s{number:07d}.{kind}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            continue
        kinds = {"img": datasets.Image(), settings.label: datasets.ClassLabel(num_classes=settings.classes)}
        rows = {"img": [{"bytes": image, "path": None}] * len(values), settings.label: values}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        table.to_parquet(str(root / split / "0000.parquet"))
    return root


@pytest.mark.parametrize("name", NAMED)
def test_every_protocol_reads_a_local_dataset_in_its_layout(
    png: Callable[[int], bytes], hub_cache: Path, tmp_path: Path, name: str
) -> None:
    tree = read_yaml(PROTOCOLS / name)["data"]
    settings = resolve(LabelledData, tree)
    source = as_on_the_hub(tmp_path / "source", settings, png)
    local = {"source": str(source), "limit": settings.classes if settings.limit else None}
    slices = open_labelled(resolve(LabelledData, tree | local))
    assert len(slices.names) == settings.classes
    for split in ("train", "test"):
        assert np.unique(slices.labels(split)).size <= settings.classes
    assert np.unique(slices.labels("test")).tolist() == list(range(settings.classes))


@pytest.mark.parametrize("name", ["oxford_pets.yaml", "vtab/dsprites_location.yaml"])
def test_a_protocol_runs_with_a_local_copy_and_fewer_steps(
    png: Callable[[int], bytes], hub_cache: Path, tmp_path: Path, words: Words, name: str
) -> None:
    settings = resolve(LabelledData, read_yaml(PROTOCOLS / name)["data"])
    source = as_on_the_hub(tmp_path / "source", settings, png)
    given = [word for word in words(source) if not word.startswith("data.classes")]
    given += ["image_size=[8,8]", "schedule.warmup_steps=1", "learning_rates=[0.01]"]
    given += ["data.limit=8"] if settings.limit else []
    assert transfer.main(["--config", str(PROTOCOLS / name), *given]) == 0
    result = json.loads((tmp_path / "out/results.jsonl").read_text())
    assert result["first_loss"] == pytest.approx(np.log(settings.classes), abs=1e-5)


def test_a_class_that_no_row_was_drawn_of_is_said_and_does_not_stop_the_transfer(
    parquet: Build, words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert transfer.main(words(parquet(SPLITS, CLASSES), "data.limit=2")) == 0
    assert "2 of 24 rows are drawn: " in capfd.readouterr().out
    assert open_any(str(tmp_path / "set"), "train").classes == tuple(NAMES)
    assert json.loads((tmp_path / "out/results.jsonl").read_text())["first_loss"] == pytest.approx(np.log(3), abs=1e-5)


def test_real_cifar_10_as_it_lies_on_the_hub_is_one_line_of_its_protocol(
    data: Path, words: Words, hub_cache: Path, tmp_path: Path
) -> None:
    source = data / "cifar10"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    given = ["data.classes=10", "data.train='train[:300]'", "data.test='test[-200:]'", "vit.image_size=[32,32]"]
    assert transfer.main(words(source, *given, "vit.patch_size=8")) == 0
    assert json.loads((tmp_path / "out/results.jsonl").read_text())["test_images"] == 200
    assert open_any(str(tmp_path / "set"), "test").classes[:2] == ("airplane", "automobile")  # type: ignore[index]


def test_a_set_is_written_once_and_its_source_may_go_then(
    parquet: Build, words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = parquet(SPLITS, CLASSES)
    assert transfer.main(words(source)) == 0
    assert "24" in capfd.readouterr().out
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*.tar")}
    source.rename(tmp_path / "elsewhere")
    assert transfer.main(words(source, "seed=1")) == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*.tar")}
    assert verify([str(tmp_path / "set"), "full=true"]) == 0


@pytest.mark.parametrize("change", [{"limit": 6}, {"train": "train[:12]"}, {"source": "another/name"}])
def test_a_set_of_other_data_is_not_taken_for_this_one(parquet: Build, tmp_path: Path, change: dict[str, Any]) -> None:
    tree = {"source": str(parquet(SPLITS, CLASSES)), "classes": 3}
    ready(str(tmp_path / "set"), resolve(LabelledData, tree))
    name = next(iter(change))
    with pytest.raises(
        ConfigError, match=rf"written from other data \({name}: .* there, .*{change[name]}".replace("[:", r"\[:")
    ):
        ready(str(tmp_path / "set"), resolve(LabelledData, tree | change))


def test_a_killed_writer_is_continued_by_the_same_command(
    parquet: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(LabelledData, {"source": str(parquet(SPLITS, CLASSES)), "classes": 3})
    for step in ("run_shards", "finalize_shards"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(labelled, step, interrupted)
            ready(str(tmp_path / "set"), settings)
        with pytest.raises(DataError, match="not finished"):
            open_any(str(tmp_path / "set"), "train")
    ready(str(tmp_path / "set"), settings)
    assert open_any(str(tmp_path / "set"), "train").samples == 24


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_set_that_mpp_shard_wrote_is_used_as_it_is_unless_its_classes_contradict(
    words: Words, png: Callable[[int], bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = folders(tmp_path / "source", png)
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "set"), workers=0))
    assert transfer.main(words("no/such")) == 0
    assert "taken as it is, it was not written from no/such" in capfd.readouterr().out
    assert transfer.main(words("no/such", "data.classes=4")) == 3
    assert "has 3 classes, data.classes is 4" in capfd.readouterr().err


def test_refused_images_are_said_and_too_many_are_an_error_every_time(
    png: Callable[[int], bytes], hub_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = folders(tmp_path / "source", png)
    (source / "test/red/000.png").write_bytes(png(0)[:60])
    tree = {"source": str(source), "classes": 3}
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 36 images were refused"):
            ready(str(tmp_path / "set"), resolve(LabelledData, tree))
    ready(str(tmp_path / "set"), resolve(LabelledData, tree | {"max_refused": 0.05}))
    assert "1 of 36 images were refused when it was written" in capfd.readouterr().out


def test_other_processes_wait_for_the_first_to_write_the_set(
    parquet: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(LabelledData, {"source": str(parquet(SPLITS, CLASSES)), "classes": 3})
    monkeypatch.setattr(labelled, "PAUSE", 0.02)
    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patch, pytest.raises(HangError, match="not written it within"):
        patch.setattr(labelled, "PATIENCE", 0.1)
        ready(str(tmp_path / "set"), settings)
    assert not (tmp_path / "set").exists()
    monkeypatch.delenv("RANK")
    waiting = threading.Thread(target=labelled._wait, args=(str(tmp_path / "set"), settings), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    ready(str(tmp_path / "set"), settings)
    waiting.join(60)
    assert not waiting.is_alive()
    assert json.loads((tmp_path / "set" / RECORD).read_text())["classes"] == 3


def test_a_relative_source_may_go_too(parquet: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(SPLITS, CLASSES)
    monkeypatch.chdir(source.parent)
    settings = resolve(LabelledData, {"source": source.name, "classes": 3})
    ready(str(tmp_path / "set"), settings)
    source.rename(tmp_path / "elsewhere")
    ready(str(tmp_path / "set"), settings)
    monkeypatch.chdir("/")  # there it would be another one
    with pytest.raises(ConfigError, match=r"source: .* there, .* now"):
        ready(str(tmp_path / "set"), settings)


def test_a_local_source_that_has_changed_is_noticed(
    png: Callable[[int], bytes], hub_cache: Path, tmp_path: Path
) -> None:
    source = folders(tmp_path / "source", png)
    settings = resolve(LabelledData, {"source": str(source), "classes": 3})
    ready(str(tmp_path / "set"), settings)
    for file in source.rglob("*.png"):
        os.utime(file, (1, 1))  # a copy of it is the same
    ready(str(tmp_path / "set"), settings)
    moved = source / "train/red/000.png"
    moved.rename(source / "train/green/000.png")  # another label, as many files and bytes
    with pytest.raises(ConfigError, match=r"other data \(content: 36 files, .* there, 36 files, .* now"):
        ready(str(tmp_path / "set"), settings)
    (source / "train/green/000.png").rename(moved)
    ready(str(tmp_path / "set"), settings)
    moved.unlink()
    with pytest.raises(ConfigError, match=r"content: 36 files, .* there, 35 files, .* now"):
        ready(str(tmp_path / "set"), settings)


def test_a_record_that_is_no_object_is_damaged(parquet: Build, tmp_path: Path) -> None:
    settings = resolve(LabelledData, {"source": str(parquet(SPLITS, CLASSES)), "classes": 3})
    ready(str(tmp_path / "set"), settings)
    (tmp_path / "set" / RECORD).write_text("[1]")
    with pytest.raises(DataError, match="damaged, no JSON object"):
        ready(str(tmp_path / "set"), settings)


@pytest.mark.parametrize("held", [locked, labelled._alone])
@pytest.mark.parametrize("writes", [False, True])
def test_a_second_job_waits_for_the_one_that_writes_or_goes_on_with_what_it_left(
    parquet: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool, held: Any
) -> None:
    monkeypatch.setattr(labelled, "PAUSE", 0.02)
    tree = {"source": str(parquet(SPLITS, CLASSES)), "classes": 3}
    settings, out = resolve(LabelledData, tree), tmp_path / "set"
    others: list[BaseException] = []

    def second() -> None:
        try:
            ready(str(out), settings)
        except BaseException as error:
            others.append(error)

    job = threading.Thread(target=second, daemon=True)
    with held(out):  # by the first job, or by mpp-shard
        job.start()
        job.join(0.5)
        assert job.is_alive(), others
    if writes:
        ready(str(out), settings)
    job.join(60)
    assert not job.is_alive() and not others
    assert open_any(str(out), "train").samples == 24


def test_a_folder_of_others_is_left_as_it_is(parquet: Build, tmp_path: Path) -> None:
    settings = resolve(LabelledData, {"source": str(parquet(SPLITS, CLASSES)), "classes": 3})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(ConfigError, match=r"OUT .* is "):
            ready(str(tmp_path / name), settings)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]


def test_probes_take_a_protocol_s_data_too(parquet: Build, tmp_path: Path, words: Words) -> None:
    given = [word for word in words(parquet(SPLITS, CLASSES)) if word.startswith(("data", "shards", "out", "vit"))]
    assert probe.main([*given, "backbone=scratch", "probes=[fewshot]", "shots=[1]", "stream.workers=0"]) == 0
    assert (tmp_path / "out/probes.jsonl").read_text().count('"probe": "few-shot 1"') == 2
