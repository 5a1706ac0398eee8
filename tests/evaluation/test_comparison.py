"""Comparisons: killed and continued they are the same, no finished part is repeated, nothing unequal is compared."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpp.config import merge, resolve
from mpp.errors import ConfigError, DataError
from mpp.evaluation.choosing import Choice
from mpp.evaluation.comparison import compare
from mpp.evaluation.finetune import Finetuning, TransferResult
from mpp.evaluation.plan import CompareConfig
from mpp.evaluation.statistics import holm, paired_difference
from mpp.evaluation.verdict import Comparison, Cost
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.plain_yaml import read_yaml
from mpp.shards.shardset import open_shards
from mpp.training.backbone import load_backbone, save_backbone

LONG = {"kind": "scratch", "same_flops": True}
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


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of all parts by name, without what the clock decides."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((out / "parts").iterdir())}
    return {name: {key: value for key, value in record.items() if key != "seconds"} for name, record in found.items()}


def timeless(comparison: Comparison) -> Comparison:
    """The comparison without seconds and its own place."""

    def still(cost: Cost | None) -> Cost | None:
        return None if cost is None else replace(cost, seconds=0.0)

    rows = [
        replace(row, pretraining=still(row.pretraining), tuning=still(row.tuning), finetuning=still(row.finetuning))
        for row in comparison.rows
    ]
    arms = [replace(arm, runs=tuple(run.name for run in arm.runs)) for arm in comparison.arms]  # type: ignore[misc]
    settings = {**comparison.settings, "out": ""}
    still_comparison = replace(comparison, rows=tuple(rows), arms=tuple(arms), settings=settings)
    return replace(still_comparison, folder=Path(), settings_sha256="", environment={})


def test_every_arm_gets_every_seed_one_rate_and_the_same_budget(undisturbed: tuple[Path, Comparison]) -> None:
    out, result = undisturbed
    arms = ("masked", "supervised", "scratch")
    lines = records(out)
    expected = {"pretrain-masked-seed0", "pretrain-supervised-seed0"}
    expected |= {f"choose-{arm}-5labels" for arm in arms}
    expected |= {f"final-{arm}-5labels-seed{seed}" for arm in arms for seed in (0, 1)}
    assert set(lines) == expected
    finals = [line for name, line in lines.items() if name.startswith("final")]
    assert len({(line["images_seen"], line["flops"], line["test_images"], line["trials"]) for line in finals}) == 1
    assert [row.arm for row in result.rows] == list(arms)
    assert [row.trials for row in result.rows] == [2, 2, 2]
    for row in result.rows:
        values = [lines[f"final-{row.arm}-5labels-seed{seed}"]["top1"] for seed in (0, 1)]
        assert row.top1_by_seed == tuple(values) and row.top1.mean == pytest.approx(sum(values) / 2)
        assert (row.difference is None) == (row.p_holm is None) == (row.arm == "scratch")
    masked, _, scratch = result.rows
    assert masked.difference is not None
    assert masked.difference.mean == pytest.approx(masked.top1.mean - scratch.top1.mean)
    assert (out / "STATUS").read_text() == "finished\n"


def test_differences_are_paired_by_seed_and_p_is_corrected_for_all_of_them(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    accuracies = {"masked": (60.0, 50.0), "supervised": (80.0, 93.0), "scratch": (20.0, 30.0)}
    for arm, values in accuracies.items():
        for seed, top1 in enumerate(values):
            path = out / "parts" / f"final-{arm}-5labels-seed{seed}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "top1": top1}))
    masked, supervised, scratch = compare(settings(tree, out)).rows
    assert masked.difference == paired_difference([60.0, 50.0], [20.0, 30.0])
    assert supervised.difference == paired_difference([80.0, 93.0], [20.0, 30.0])
    assert [row.top1_by_seed for row in (masked, supervised, scratch)] == list(accuracies.values())
    assert masked.difference.mean == 30.0 and masked.difference.p is not None and supervised.difference.p is not None
    assert [masked.p_holm, supervised.p_holm] == holm([masked.difference.p, supervised.difference.p])


def test_what_every_arm_cost_is_told_by_stage(undisturbed: tuple[Path, Comparison]) -> None:
    masked, supervised, scratch = undisturbed[1].rows
    costs = [row.pretraining for row in (masked, supervised, scratch)]
    assert all(cost is not None for cost in costs)
    assert [cost.images for cost in costs if cost] == [48, 48, 0]
    assert costs[0] is not None and costs[0].flops > 0 and costs[0].seconds > 0
    assert scratch.pretraining == Cost(0, 0.0, 0.0)
    for row in (masked, supervised, scratch):
        assert row.finetuning.images == 3 * 12  # steps of a batch, of 15 labelled images
        assert row.tuning.images == 2 * 3 * 12 and row.tuning.seconds > 0


def test_a_reader_learns_of_the_data_and_the_arms(undisturbed: tuple[Path, Comparison], tiny_shards: Path) -> None:
    result = undisturbed[1]
    assert [(facts.role, facts.split, facts.images, facts.classes) for facts in result.data] == [
        ("pretraining", "train", 60, 3),
        ("fine-tuning", "train", 60, 3),
        ("test", "test", open_shards(tiny_shards, "test").samples, 3),
    ]
    words = {arm.name: arm.words for arm in result.arms}
    assert words["masked"] == "mean_color of 50 % random patches, 3 steps of 16 images"
    assert words["supervised"] == "labels, 3 steps of 16 images"
    assert words["scratch"] == "no pretraining"
    assert all(arm.parameters for arm in result.arms)
    assert result.settings["shards"] == str(tiny_shards) and len(result.settings_sha256) == 64
    assert result.environment["packages"]["torch"]


def test_the_pretrained_arms_differ_in_their_task_alone(undisturbed: tuple[Path, Comparison]) -> None:
    runs = [run for arm in undisturbed[1].arms for run in arm.runs]
    assert [run.name for run in runs] == ["masked-seed0", "supervised-seed0"]
    masked, supervised = (read_yaml(run / "config.yaml") for run in runs)
    different = {key for key in masked if masked[key] != supervised[key]}
    assert different == {"task", "out"}


def test_warnings_say_what_supervised_pretraining_saw_and_what_intervals_do_not_hold(
    undisturbed: tuple[Path, Comparison],
) -> None:
    assert any("the labels of all 60 images" in warning for warning in undisturbed[1].warnings)
    assert any("not of pretraining" in warning for warning in undisturbed[1].warnings)
    assert any("2 seed(s)" in warning for warning in undisturbed[1].warnings)


@pytest.mark.slow
def test_the_supervised_arm_may_be_a_resnet_and_a_warning_says_so(tree: dict[str, Any], tmp_path: Path) -> None:
    changes = {"seeds": [0], "pretrain": {"steps": 1}, "transfer": {"steps": 1, "learning_rates": []}}
    resnet = {"kind": "supervised", "changes": {"vit": {**RESNET, "image_size": [8, 8]}}}
    arms = ["masked", "resnet", "scratch"]
    result = compare(settings(tree, tmp_path / "out", arms=arms, variants={"resnet": resnet}, **changes))
    assert "the arm resnet differs from the others in its vit, not in its task alone" in result.warnings
    assert any("times the operations of masked" in warning for warning in result.warnings)
    names = [load_backbone(str(arm.runs[0])).vit.name for arm in result.arms if arm.runs]
    assert names == ["vit_tiny_patch16_224", "resnetv2_50x1_bit"]
    masked, other, scratch = (row.finetuning.flops for row in result.rows)
    assert masked == scratch < other
    first = records(tmp_path / "out")["final-resnet-5labels-seed0"]["first_loss"]
    assert first == pytest.approx(math.log(3), abs=1e-6)


def test_scratch_may_spend_on_fine_tuning_what_the_others_spend_in_all(tree: dict[str, Any], tmp_path: Path) -> None:
    changes = {"arms": ["masked", "long"], "variants": {"long": LONG}, "seeds": [0], "transfer": {"learning_rates": []}}
    masked, long = compare(settings(tree, tmp_path / "out", **changes)).rows
    assert masked.pretraining is not None
    total = masked.pretraining.flops + masked.finetuning.flops
    assert long.finetuning.flops == pytest.approx(total, rel=0.5 / 3)  # whole steps
    assert long.finetuning.images > masked.finetuning.images


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("finished", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_a_comparison_killed_and_continued_is_the_same_and_repeats_no_finished_part(
    tree: dict[str, Any],
    undisturbed: tuple[Path, Comparison],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: int,
) -> None:
    calls: list[tuple[str, int]] = []
    final = Finetuning.final

    def mortal(self: Finetuning, choice: Choice) -> TransferResult:
        if len(calls) == finished:
            raise Killed
        calls.append((self.settings.backbone, self.settings.seed))
        return final(self, choice)

    monkeypatch.setattr(Finetuning, "final", mortal)
    with pytest.raises(Killed):
        compare(settings(tree, tmp_path / "out"))
    assert "the same command continues" in (tmp_path / "out" / "STATUS").read_text()
    weights = tmp_path / "out" / "pretrain" / "masked-seed0" / "backbone.safetensors"
    written = weights.stat().st_mtime_ns
    finished = -1
    result = compare(settings(tree, tmp_path / "out"))
    assert records(tmp_path / "out") == records(undisturbed[0])
    assert timeless(result) == timeless(undisturbed[1])
    assert len(calls) == len(set(calls)) == 6
    assert weights.stat().st_mtime_ns == written


def test_the_end_of_a_comparison_changes_nothing_when_it_is_asked_for_again(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed[0] / "parts").iterdir()}
    monkeypatch.setattr(Finetuning, "_fit", None)
    again = compare(settings(tree, undisturbed[0]))
    assert replace(again, environment={}) == replace(undisturbed[1], environment={})
    assert {path: path.stat().st_mtime_ns for path in (undisturbed[0] / "parts").iterdir()} == before


def test_another_comparison_in_the_same_folder_is_refused(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison]
) -> None:
    with pytest.raises(ConfigError, match=r"transfer.steps: was 3, now 4"):
        compare(settings(tree, undisturbed[0], transfer={"steps": 4}))


def test_a_comparison_may_be_continued_with_more_parts_at_a_time(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison]
) -> None:
    again = compare(settings(tree, undisturbed[0], parallel=2))
    assert (again.rows, again.settings_sha256) == (undisturbed[1].rows, undisturbed[1].settings_sha256)


def test_other_images_in_the_folder_of_the_shards_are_refused(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "out")
    path = tmp_path / "out" / "data.json"
    known = json.loads(path.read_text())
    known["data"][2]["fingerprint"] = "another"
    path.write_text(json.dumps(known))
    with pytest.raises(DataError, match="/test changed since"):
        compare(settings(tree, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("final-masked-5labels-seed0", {"trials": 20}, "its trials is 20, that of the part 2"),
        ("final-masked-5labels-seed0", {"steps": 300}, "its steps is 300, that of the part 3"),
        ("final-masked-5labels-seed0", {"learning_rate": 9.0}, "its learning_rate is 9.0"),
        ("final-masked-5labels-seed0", {"seed": 1}, "its seed is 1, that of the part 0"),
        ("final-masked-5labels-seed0", {"labels_per_class": None}, "its labels_per_class is None"),
        ("final-masked-5labels-seed0", {"metric": "mean_per_class"}, "its metric is mean_per_class"),
        ("final-masked-5labels-seed0", None, "without dataset, first_loss"),
        ("choose-masked-5labels", None, "without flops, held_out_top1"),
        ("pretrain-masked-seed0", None, "without flops, images_seen"),
    ],
)
def test_a_record_that_is_not_of_its_part_is_refused(
    tree: dict[str, Any],
    undisturbed: tuple[Path, Comparison],
    tmp_path: Path,
    name: str,
    change: dict[str, Any] | None,
    words: str,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    path = out / "parts" / f"{name}.json"
    path.write_text(json.dumps({} if change is None else {**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=f"{name}.json is no record of this part: {words}(.|\n)*fix: rm "):
        compare(settings(tree, out))


def test_a_choice_with_more_trials_than_the_others_is_a_warning(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    for path in (out / "parts").glob("*-masked-5labels*"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "trials": 20}))
    result = compare(settings(tree, out))
    assert "trials of the grid differ with 5 labels per class: masked 20, supervised 2, scratch 2" in result.warnings


def test_parts_of_unlike_machines_are_a_warning(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    path = out / "parts" / "final-masked-5labels-seed0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "H100, bf16"}))
    result = compare(settings(tree, out))
    assert "parts ran on unlike machines, H100, bf16 and cpu, fp32: seconds do not compare" in result.warnings
    assert result.environment["parts ran on"] == ["H100, bf16", "cpu, fp32"]


def test_a_backbone_from_outside_is_held_to_its_weights_and_told_where_it_is_another_network(
    tree: dict[str, Any], undisturbed: tuple[Path, Comparison], tiny_vit: dict[str, Any], tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs.safetensors"
    save_backbone(theirs, build_encoder(resolve(VitConfig, {**tiny_vit, "depth": 8})), "elsewhere")
    changes = {
        "arms": ["theirs", "scratch"],
        "variants": {"theirs": {"kind": "backbone", "source": str(theirs)}},
        "seeds": [0],
        "transfer": {"learning_rates": []},
    }
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert result.rows[0].pretraining is None and result.arms[0].parameters
    assert any("scratch takes" in warning and "operations of theirs" in warning for warning in result.warnings)
    save_backbone(theirs, build_encoder(resolve(VitConfig, {**tiny_vit, "depth": 8})), "elsewhere")  # other weights
    with pytest.raises(DataError, match=r"theirs.safetensors changed since"):
        compare(settings(tree, tmp_path / "out", **changes))


def test_an_arm_that_is_another_one_by_another_name_is_left_out(tree: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "arms": ["masked", "mean_color", "scratch"],
        "variants": {"mean_color": {"kind": "masked", "changes": {"task": {"target": {"kind": "mean_color"}}}}},
        "seeds": [0],
        "transfer": {"learning_rates": []},
    }
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert [row.arm for row in result.rows] == ["masked", "scratch"]
    assert "mean_color is masked by another name, and left out" in result.notes


def test_a_failure_is_not_called_an_interruption(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Finetuning) -> Choice:
        raise DataError("a damaged image")

    monkeypatch.setattr(Finetuning, "choose", fail)
    with pytest.raises(DataError):
        compare(settings(tree, tmp_path / "out", arms=["scratch"]))
    assert (tmp_path / "out" / "STATUS").read_text() == "failed\n"


def test_without_labels_the_supervised_arm_is_left_out_and_the_notes_say_so(
    tree: dict[str, Any], tiny_shards: Path, bare_tiny_shards: Path, tmp_path: Path
) -> None:
    changes = {"shards": str(bare_tiny_shards), "labelled": str(tiny_shards), "transfer": {"learning_rates": []}}
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert [row.arm for row in result.rows] == ["masked", "scratch"]
    assert any("supervised pretraining is left out" in note and "no labels" in note for note in result.notes)
    assert [run.name for arm in result.arms for run in arm.runs] == ["masked-seed0"]


def test_a_rate_that_is_chosen_belongs_to_its_arm_and_number_of_labels(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def choose(self: Finetuning) -> Choice:
        chosen.append((Path(self.settings.backbone).name, self.settings.labels_per_class, self.settings.seed))
        return replace(real(self), learning_rate=len(chosen) / 1000)

    real = Finetuning.choose
    monkeypatch.setattr(Finetuning, "choose", choose)
    changes = {"arms": ["masked", "scratch"], "labels_per_class": [5, None], "pretrain_per_seed": True}
    changes["transfer"] = {"learning_rates": []}
    result = compare(settings(tree, tmp_path / "out", **changes))
    assert chosen == [(name, labels, 0) for labels in (5, None) for name in ("masked-seed0", "scratch")]
    assert [row.learning_rate for row in result.rows] == [0.001, 0.002, 0.003, 0.004]
    assert [run.name for arm in result.arms for run in arm.runs] == ["masked-seed0", "masked-seed1"]
    assert result.notes == () and not any("pretrained once" in warning for warning in result.warnings)


def test_differences_may_be_to_another_arm_which_makes_it_an_ablation(tree: dict[str, Any], tmp_path: Path) -> None:
    blocks = {"kind": "masked", "changes": {"task": {"mask": {"kind": "block"}}}}
    changes = {"arms": ["masked", "blocks"], "variants": {"blocks": blocks}, "against": "masked"}
    result = compare(settings(tree, tmp_path / "out", transfer={"learning_rates": []}, **changes))
    assert [row.difference is None for row in result.rows] == [True, False]
    assert {arm.name: arm.words.split(",")[0] for arm in result.arms} == {
        "masked": "mean_color of 50 % random patches",
        "blocks": "mean_color of 50 % block patches",
    }


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
        ({"pretrain": {"task": {"kind": "classification"}}}, ConfigError, "the arm masked is masked"),
        ({"pretrain": {"vit": RESNET}}, ConfigError, "has no patch tokens, the masked arm masked needs them"),
        ({"against": "teacher"}, ConfigError, "none of the arms"),
        (
            {"arms": ["masked", "long"], "variants": {"long": {"kind": "scratch"}}, "against": "scratch"},
            ConfigError,
            "none",
        ),
        (
            {"arms": ["long"], "variants": {"long": {"kind": "scratch", "same_flops": True}}},
            ConfigError,
            "no pretrained",
        ),
        ({"pretrain": {"schedule": {"warmup_steps": 3}}}, ConfigError, "warmup_steps"),
        ({"pretrain": {"tracker": "nonsense"}}, ConfigError, "nonsense"),
        ({"pretrain": {"ema": 0.9}}, ConfigError, "not their average"),
        ({"pretrain": {"probe": {"every": 1, "shards": "missing"}}}, DataError, "missing"),
        ({"test_split": "train"}, ConfigError, "test_split is train_split"),
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
