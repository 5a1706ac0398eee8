"""Comparisons: killed and continued they are the same, no finished part is repeated, nothing unequal is compared."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError
from mpp.evaluation import comparison
from mpp.evaluation.choosing import Choice, no_choice
from mpp.evaluation.comparison import CompareConfig, Comparison, compare
from mpp.evaluation.finetune import Finetuning, TransferResult
from mpp.training.backbone import load_backbone

RESNET = {"name": "resnetv2_50x1_bit", "pool": "mean", **dict.fromkeys(("patch_size", "width", "depth", "heads"))}


@pytest.fixture(scope="module")
def tree(tiny_shards: Path, tiny_vit: dict[str, Any]) -> dict[str, Any]:
    """Three arms, two seeds, one number of labels, three steps each, as in a configuration file."""
    view = {"crop": "pad", "flip": False}
    return {
        "shards": str(tiny_shards),
        "seeds": [0, 1],
        "labels_per_class": [5],
        "pretrain": {
            "vit": tiny_vit,
            "view": view,
            "steps": 3,
            "global_batch": 16,
            "log_every": 1,
            "stream": {"workers": 0},
        },
        "transfer": {
            "view": view,
            "optimizer": {"kind": "adamw"},
            "learning_rates": [0.001, 0.01],
            "held_out": 0.2,
            "steps": 3,
            "global_batch": 12,
            "stream": {"workers": 0},
        },
    }


def settings(tree: dict[str, Any], out: Path, **changes: Any) -> CompareConfig:
    return resolve(CompareConfig, merge({**tree, "out": str(out)}, changes))


@pytest.fixture(scope="module")
def undisturbed(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A comparison from start to end."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, compare(settings(tree, out))


def parts(out: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl without what the clock and the place of the folder decide."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_every_arm_gets_every_seed_one_rate_and_the_same_budget(undisturbed: tuple[Path, Comparison]) -> None:
    out, result = undisturbed
    arms = ("masked", "supervised", "scratch")
    expected = [
        f"{kind} {arm} 5{seed}" for arm in arms for kind, seed in [("rate", ""), ("result", " 0"), ("result", " 1")]
    ]
    lines = parts(out)
    assert [line["part"] for line in lines] == ["shards", *expected]
    results = [line for line in lines if line["part"].startswith("result")]
    assert len({(line["images_seen"], line["flops"], line["test_images"]) for line in results}) == 1
    assert [row.arm for row in result.rows] == list(arms)
    assert [row.pretrain_images for row in result.rows] == [48, 48, 0]
    for row in result.rows:
        values = [line["top1"] for line in results if line["part"].startswith(f"result {row.arm} ")]
        assert row.top1.mean == pytest.approx(sum(values) / 2)
        assert (row.difference is None) == (row.arm == "scratch")
    masked, _, scratch = result.rows
    assert masked.difference is not None
    assert masked.difference.mean == pytest.approx(masked.top1.mean - scratch.top1.mean)
    assert (out / "STATUS").read_text() == "finished\n"


def test_the_pretrained_arms_differ_in_their_task_alone(undisturbed: tuple[Path, Comparison]) -> None:
    masked, supervised = ((run / "config.yaml").read_text() for run in undisturbed[1].runs)
    assert [run.name for run in undisturbed[1].runs] == ["masked-seed0", "supervised-seed0"]
    different = set(masked.splitlines()) ^ set(supervised.splitlines())
    assert {line.split(":")[0].strip() for line in different} <= {
        *("kind", "mask", "ratio", "masked", "other", "target", "bits", "mixing", "mixup", "cutmix", "out")
    }


def test_the_notes_say_what_supervised_pretraining_saw(undisturbed: tuple[Path, Comparison]) -> None:
    assert any("the labels of all 60 images" in note for note in undisturbed[1].notes)
    assert any("not of pretraining" in note for note in undisturbed[1].notes)


@pytest.mark.slow
def test_the_supervised_arm_may_be_a_resnet_and_the_notes_say_so(tree: dict[str, Any], tmp_path: Path) -> None:
    changes = {"seeds": [0], "pretrain": {"steps": 1}, "transfer": {"steps": 1, "learning_rates": []}}
    resnet = {**RESNET, "image_size": [8, 8]}
    result = compare(settings(tree, tmp_path / "out", supervised_vit=resnet, **changes))
    assert "the supervised arm is another network, resnetv2_50x1_bit, than the others" in result.notes
    names = [load_backbone(str(run)).vit.name for run in result.runs]
    assert names == ["vit_tiny_patch16_224", "resnetv2_50x1_bit"]
    lines = {line["part"]: line for line in parts(tmp_path / "out")}
    flops = [lines[f"result {arm} 5 0"]["flops"] for arm in ("masked", "supervised", "scratch")]
    assert flops[0] == flops[2] < flops[1]
    assert lines["result supervised 5 0"]["first_loss"] == pytest.approx(math.log(3), abs=1e-6)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("finished", [0, 4])
def test_a_comparison_killed_and_continued_is_the_same_and_repeats_no_finished_part(
    tree: dict[str, Any],
    undisturbed: tuple[Path, Comparison],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: int,
) -> None:
    calls: list[tuple[str, int]] = []
    final = Finetuning.final

    def mortal(self: Finetuning, rate: float) -> TransferResult:
        if len(calls) == finished:
            raise Killed
        calls.append((self.settings.backbone, self.settings.seed))
        return final(self, rate)

    monkeypatch.setattr(Finetuning, "final", mortal)
    with pytest.raises(Killed):
        compare(settings(tree, tmp_path / "out"))
    assert "the same command continues" in (tmp_path / "out" / "STATUS").read_text()
    weights = tmp_path / "out" / "pretrain" / "masked-seed0" / "backbone.safetensors"
    written = weights.stat().st_mtime_ns
    finished = -1
    result = compare(settings(tree, tmp_path / "out"))
    assert parts(tmp_path / "out") == parts(undisturbed[0])
    assert result.rows == undisturbed[1].rows
    assert len(calls) == len(set(calls)) == 6
    assert weights.stat().st_mtime_ns == written


def test_a_half_written_last_line_is_cut_off_and_its_part_repeated(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "out")
    path = tmp_path / "out" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert compare(settings(tree, tmp_path / "out")).rows == undisturbed[1].rows
    assert parts(tmp_path / "out") == parts(undisturbed[0])


def test_the_end_of_a_comparison_changes_nothing_when_it_is_asked_for_again(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (undisturbed[0] / "results.jsonl").read_bytes()
    monkeypatch.setattr(Finetuning, "_fit", None)
    assert compare(settings(tree, undisturbed[0])) == undisturbed[1]
    assert (undisturbed[0] / "results.jsonl").read_bytes() == before


def test_another_comparison_in_the_same_folder_is_refused(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison]
) -> None:
    with pytest.raises(ConfigError, match=r"transfer.steps: was 3, now 4"):
        compare(settings(tree, undisturbed[0], transfer={"steps": 4}))


def test_other_images_in_the_folder_of_the_shards_are_refused(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "out")
    path = tmp_path / "out" / "results.jsonl"
    first, _, rest = path.read_text().partition("\n")
    record = json.loads(first)
    path.write_text(json.dumps({**record, f"{tree['shards']}/test": "another"}) + "\n" + rest)
    with pytest.raises(DataError, match="/test changed since"):
        compare(settings(tree, tmp_path / "out"))


def test_without_labels_the_supervised_arm_is_left_out_and_the_notes_say_so(
    tree: dict[str, Any], tiny_shards: Path, bare_tiny_shards: Path, tmp_path: Path
) -> None:
    changes = {"shards": str(bare_tiny_shards), "labelled": str(tiny_shards), "transfer": {"learning_rates": []}}
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert [row.arm for row in result.rows] == ["masked", "scratch"]
    assert any("supervised pretraining is left out" in note and "no labels" in note for note in result.notes)
    assert [run.name for run in result.runs] == ["masked-seed0"]


def test_a_rate_that_is_chosen_belongs_to_its_arm_and_number_of_labels(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def choose(self: Finetuning) -> Choice:
        chosen.append((Path(self.settings.backbone).name, self.settings.labels_per_class, self.settings.seed))
        return no_choice(len(chosen) / 1000, self.settings.steps)

    monkeypatch.setattr(Finetuning, "choose", choose)
    changes = {"arms": ["masked", "scratch"], "labels_per_class": [5, None], "pretrain_per_seed": True}
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert chosen == [(name, labels, 0) for labels in (5, None) for name in ("masked-seed0", "scratch")]
    assert [row.learning_rate for row in result.rows] == [0.001, 0.002, 0.003, 0.004]
    assert [run.name for run in result.runs] == ["masked-seed0", "masked-seed1"]
    assert result.notes == ()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"seeds": [0, 1, 0]}, ConfigError, "repeat"),
        ({"arms": ["scratch", "scratch"]}, ConfigError, "repeat"),
        ({"labels_per_class": [5, 5]}, ConfigError, "repeat"),
        ({"labels_per_class": [5, 21]}, DataError, "labels_per_class=20"),
        ({"labels_per_class": [1]}, DataError, "none is left"),
        ({"test_split": "val"}, DataError, "no split 'val'"),
        ({"transfer": {"image_size": [9, 9]}}, ConfigError, "patch size"),
        ({"pretrain": {"task": {"kind": "classification"}}}, ConfigError, "masked arm"),
        ({"pretrain": {"vit": RESNET}}, ConfigError, "has no patch tokens, the masked arm needs them"),
        ({"supervised_vit": {"name": "resnetv2_50x1_bit"}}, ConfigError, "vit.pool=mean"),
    ],
)
def test_what_cannot_work_is_refused_before_pretraining(
    tree: dict[str, Any], tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        compare(settings(tree, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_supervised_pretraining_alone_needs_labels(
    tree: dict[str, Any], tiny_shards: Path, bare_tiny_shards: Path, tmp_path: Path
) -> None:
    changes = {"shards": str(bare_tiny_shards), "labelled": str(tiny_shards), "arms": ["supervised"]}
    with pytest.raises(DataError, match="no other arm is left"):
        compare(settings(tree, tmp_path / "out", **changes))


@pytest.mark.parametrize("changes", [{"labels_per_class": [0]}, {"seeds": [-1]}])
def test_counts_and_seeds_that_are_none_are_refused(
    tree: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        settings(tree, tmp_path / "out", **changes)


def test_only_the_main_process_mends_a_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"part": "a", "x": 1}\n{"part": "b"')
    assert comparison._read_records(path, mend=False) == {"a": {"x": 1}}
    assert path.read_text().endswith('"b"')
    assert comparison._read_records(path, mend=True) == {"a": {"x": 1}}
    assert path.read_text() == '{"part": "a", "x": 1}\n'
