"""Probing a backbone from shards to lines: every probe on every kind of feature, refusals before the first image."""

import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError, DiskError
from mpp.evaluation import probing
from mpp.evaluation.features import Features, extract
from mpp.evaluation.frozen import FrozenBackbone
from mpp.evaluation.probing import ProbeConfig, check_labels, probe, table
from mpp.plain_yaml import read_yaml
from mpp.stream.views import ViewConfig, eval_view

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tree(tiny_run: Path, tiny_shards: Path, tmp_path: Path) -> dict[str, Any]:
    """Every probe of the tiny run."""
    out = str(tmp_path / "out")
    shots = [1, 5]
    return {"backbone": str(tiny_run), "shards": str(tiny_shards), "out": out, "shots": shots, "stream": {"workers": 0}}


def settings(tree: dict[str, Any], **changes: Any) -> ProbeConfig:
    return resolve(ProbeConfig, merge(tree, changes))


def test_every_probe_of_every_feature_is_one_line(tree: dict[str, Any]) -> None:
    results = probe(settings(tree))
    names = ["few-shot 1", "few-shot 5", "kNN 20 weighted", "kNN 20 plain", "linear"]
    assert [(result.feature, result.probe) for result in results] == [
        (kind, name) for kind in ("class_token", "patch_mean") for name in names
    ]
    lines = [json.loads(line) for line in (Path(tree["out"]) / "probes.jsonl").read_text().splitlines()]
    for line, result in zip(lines, results, strict=True):
        assert line["top1"] == pytest.approx(np.mean(line["top1_by_seed"])) == result.top1
        assert (line["train_images"], line["test_images"]) == (60, 31)
        assert line["origin"].startswith("masked_patches, 2 steps")
        assert resolve(ProbeConfig, line["settings"]) == settings(tree)
        several = line["probe"].startswith("few-shot")
        assert len(line["top1_by_seed"]) == (3 if several else 1)
        assert (line["sd"] is not None) == several
    assert lines[4]["chosen"]["l2"] in settings(tree).l2
    assert results[-1].top1 > 90  # three plain hues


def test_the_same_command_again_puts_the_same_lines_in_the_place_of_its_own(tree: dict[str, Any]) -> None:
    path = Path(tree["out"]) / "probes.jsonl"
    first = probe(settings(tree, probes=["fewshot", "knn"]))
    others = probe(settings(tree, probes=["knn"], neighbours=3))
    with path.open("a") as file:
        file.write('{"feature": "class_token", "pro')  # a killed one's
    second = probe(settings(tree, probes=["fewshot", "knn"], batch=7, stream={"workers": 0, "threads": 2}))
    assert [result.top1_by_seed for result in first] == [result.top1_by_seed for result in second]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["settings"]["neighbours"] for line in lines] == [3] * len(others) + [20] * len(second)
    assert [line["settings"]["batch"] for line in lines[len(others) :]] == [7] * len(second)


@pytest.mark.parametrize(("given", "squash"), [(None, False), (0.5, True)])
def test_the_share_that_the_view_keeps_is_the_backbones_own_or_the_one_given(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: float | None, squash: bool
) -> None:
    seen: list[ViewConfig] = []

    def noted(frozen: FrozenBackbone, *words: Any, **named: Any) -> Features:
        seen.append(frozen.view)
        return extract(frozen, *words, **named)

    monkeypatch.setattr(probing, "extract", noted)
    probe(settings(tree, probes=["knn"], crop_fraction=given, squash=squash))
    assert seen == [ViewConfig(crop_fraction=given or 0.875, squash=squash)] * 2


def test_probes_into_one_folder_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    path, each = tmp_path / "probes.jsonl", 60

    def record(writer: int) -> None:
        for seed in [number for number in range(each) for _ in range(2)]:  # every second one replaces the one before
            probing._record(path, {"feature": "f", "probe": "p", "settings": {"backbone": writer, "seed": seed}})

    writers = [threading.Thread(target=record, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [json.loads(line)["settings"] for line in path.read_text().splitlines()]
    assert sorted((line["backbone"], line["seed"]) for line in found) == [(w, n) for w in range(3) for n in range(each)]


def test_few_shot_by_its_config_is_big_visions_protocol() -> None:
    """The view too: both sides resized to 256, the middle 224 x 224 of that."""
    asked = read_yaml(ROOT / "configs" / "probe" / "few_shot.yaml")
    few = resolve(ProbeConfig, {**asked, "backbone": "", "shards": "", "out": ""})
    assert (few.probes, few.shots, few.seeds) == (("fewshot",), (1, 5, 10, 25), (0, 1, 2))
    assert few.crop_fraction is not None and few.squash
    random = np.random.default_rng(0)
    for height, width, most in ((400, 512, 0.02), (512, 333, 2.0), (300, 400, 2.0)):  # a box has whole pixels
        coarse = Image.fromarray(random.integers(0, 256, (9, 11, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        stored = io.BytesIO()
        image.save(stored, "PNG")
        seen = eval_view(stored.getvalue(), ViewConfig(crop_fraction=few.crop_fraction, squash=few.squash), (224, 224))
        expected = center_crop(resize(image, [256, 256], InterpolationMode.BILINEAR), [224, 224])
        assert np.abs(seen.transpose(1, 2, 0).astype(int) - np.asarray(expected)).mean() < most


def test_the_table_has_a_row_a_probe_and_a_column_a_feature(tree: dict[str, Any]) -> None:
    results = probe(settings(tree, probes=["fewshot", "linear"]))
    lines = table(results).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["top-1 %", "class_token", "patch_mean"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["few-shot 1", "few-shot 5", "linear"]
    assert len({len(line) for line in lines}) == 1
    assert "of 3 seeds)" in lines[2] and f"{results[-1].top1:.2f}" in lines[4]


def test_a_test_on_the_training_images_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tested on what it was fitted to"):
        probe(settings(tree, test_split="train"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": [5, 25]}, r"class 0 has 20 labelled images, 25 shots.*\n  fix: shots=\[5\]"),
        ({"shots": [25]}, r"fix: probes=\[knn,linear\]"),
        ({"neighbours": 61}, r"60 training images, 61 neighbours.*\n  fix: neighbours=60"),
    ],
)
def test_too_few_labels_are_refused_before_the_first_image(
    tree: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        probe(settings(tree, **change))
    assert not Path(tree["out"]).exists()


def test_a_class_with_one_image_cannot_be_held_out(tree: dict[str, Any]) -> None:
    labels = np.array([0, 0, 1])
    only_linear = {"probes": ["linear"]}
    with pytest.raises(DataError, match="class 1 has one labelled image"):
        check_labels(labels, 2, settings(tree, **only_linear))
    check_labels(labels, 2, settings(tree, **only_linear, l2=[0.1]))


def test_a_folder_that_cannot_be_written_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        probe(settings(tree, out=str(tmp_path / "file" / "out")))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tree: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = ["--config_file", str(ROOT / "configs/accelerate/cpu_2_processes.yaml"), str(ROOT / "mpp/probe.py")]
    given = [f"backbone={tree['backbone']}", f"shards={tree['shards']}", f"out={out}", "shots=[1,5]", "batch=7"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *command, *given, "stream.workers=0"]
    subprocess.run(launch, check=True, cwd=ROOT)
    one = probe(settings(tree))
    two = [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]
    assert [line["test_images"] for line in two] == [31] * len(one)
    for line, result in zip(two, one, strict=True):
        assert (line["feature"], line["probe"]) == (result.feature, result.probe)
        assert line["top1_by_seed"] == pytest.approx(list(result.top1_by_seed), abs=1e-6)
