"""Fine-tuning: a zero head on any backbone, every test image once, a rate chosen without the test images."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mpp.config import merge, resolve
from mpp.errors import CheckpointError, ConfigError, DataError, DiskError
from mpp.evaluation.backbones import load_vit
from mpp.evaluation.choosing import no_choice
from mpp.evaluation.finetune import Finetuning, TransferResult, transfer
from mpp.evaluation.recipe import TransferConfig
from mpp.model.mixing import Mixing
from mpp.model.tasks import Classification
from mpp.model.vit import VitConfig
from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.training.backbone import load_backbone


def settings(tree: dict[str, Any], **changes: Any) -> TransferConfig:
    return resolve(TransferConfig, merge(tree, changes))


def without_vit(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the transfer as for a backbone, which carries its own settings."""
    return {key: value for key, value in tree.items() if key != "vit"}


def final(job: Finetuning, rate: float = 0.01) -> TransferResult:
    return job.final(no_choice(rate, job.settings.steps))


def test_a_transfer_adds_one_line_and_its_first_loss_is_ln_k(tree: dict[str, Any], tiny_run: Path) -> None:
    for backbone in ("scratch", str(tiny_run), str(tiny_run / "backbone.safetensors")):
        transfer(settings(tree, backbone=backbone))
    lines = [json.loads(line) for line in (Path(tree["out"]) / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["first_loss"] == pytest.approx(math.log(3), abs=1e-6)
        assert (line["test_images"], line["images_seen"], line["recipe"]) == (31, 36, "adamw")
        assert 0 <= line["top1"] <= line["top5"] == 100  # of three classes five are all
    assert lines[0]["origin"] == "scratch"
    assert lines[1]["origin"].startswith("masked_patches, 2 steps of 16 images")
    assert lines[1]["top1"] == lines[2]["top1"]
    assert lines[0]["flops"] == lines[1]["flops"] > 0


def test_a_line_records_the_model_that_was_fine_tuned(tree: dict[str, Any], tiny_run: Path) -> None:
    trained = load_backbone(str(tiny_run)).vit
    transfer(settings(tree, backbone=str(tiny_run), vit={}))
    line = json.loads((Path(tree["out"]) / "results.jsonl").read_text())
    assert resolve(VitConfig, line["settings"]["vit"]) == trained
    assert trained.width != 32


def test_the_first_loss_is_of_the_first_step_however_rarely_is_logged(tree: dict[str, Any]) -> None:
    job = Finetuning(settings(tree, steps=60))
    assert final(job).first_loss == pytest.approx(math.log(3), abs=1e-6)


def test_three_plain_hues_are_learnt(tree: dict[str, Any]) -> None:
    assert final(Finetuning(settings(tree, steps=40))).top1 > 90


def head_of(chosen: TransferConfig, *stops: int) -> torch.Tensor:
    """Return the head after a fine-tuning, which may have been looked at before."""
    *_, last = Finetuning(chosen)._fit(np.arange(12), 0.01, "", stops or [chosen.steps])
    weight: torch.Tensor = last.task.head.weight
    return weight.detach().clone()


def test_a_transfer_can_mix_and_augment_its_training_images(tree: dict[str, Any]) -> None:
    heavy = {"mixing": {"mixup": 0.2, "cutmix": 1.0}, "view": {"augment": {"num_ops": 1, "magnitude": 3}}}
    result = final(Finetuning(settings(tree, steps=40, **heavy)))
    assert result.first_loss == pytest.approx(math.log(3), abs=1e-6)
    assert result.top1 > 60
    plain, mixed = (head_of(settings(tree, mixing=mixing)) for mixing in ({}, heavy["mixing"]))
    assert not torch.equal(plain, mixed)


def test_the_same_transfer_twice_gives_the_same_result_whatever_the_micro_batch(tree: dict[str, Any]) -> None:
    results = [final(Finetuning(settings(tree, **change))) for change in ({}, {}, {"micro_batch": 4})]
    assert results[0].top1 == results[1].top1
    assert results[0].top1 == results[2].top1


@pytest.mark.parametrize("micro_batch", [4, 7, 31, None])
def test_every_test_image_is_counted_once_whatever_the_batch(tree: dict[str, Any], micro_batch: int | None) -> None:
    job = Finetuning(settings(tree, micro_batch=micro_batch, global_batch=28 if micro_batch in (4, 7) else 31))
    ids = [int(id_) for batch in job._evaluation(job.test, None) for id_ in batch.ids if id_ >= 0]
    assert sorted(ids) == list(range(31))
    torch.manual_seed(0)
    task = Classification(load_vit(job.settings, None), torch.nn.Linear(16, 3), Mixing(), seed=0).eval()
    found = job._test(task, job.test, None)
    hits = 0
    for batch in job._evaluation(job.test, None):
        assert batch.labels is not None
        hits += int((task.scores(batch.images).argmax(1).eq(batch.labels) & batch.ids.ge(0)).sum())
    assert found.images == 31
    assert found.top1 == pytest.approx(100 * hits / 31)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_trial_that_is_tested_on_its_way_goes_the_same_way(tree: dict[str, Any], ema: float | None) -> None:
    chosen = settings(tree, steps=4, ema=ema, drop_path=0.3, mixing={"mixup": 0.2})
    job, seen = Finetuning(chosen), []
    for fitted in job._fit(np.arange(12), 0.01, "", [1, 3, 4]):
        job._test(fitted.task, job.train, np.arange(7))
        seen.append(fitted.task.head.weight.detach().clone())
    assert torch.equal(seen[-1], head_of(chosen))
    assert torch.equal(seen[1], head_of(chosen, 3))
    assert not torch.equal(seen[0], seen[1])


def test_what_is_tested_is_the_average_of_the_weights(tree: dict[str, Any]) -> None:
    weights = [head_of(settings(tree), steps).double() for steps in (1, 2, 3)]
    average = weights[0]
    for later in weights[1:]:
        average = 0.6 * average + 0.4 * later
    found = head_of(settings(tree, ema=0.6))
    assert torch.allclose(found.double(), average, atol=1e-7)
    assert not torch.allclose(found.double(), weights[-1], atol=1e-4)


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"drop_path": 0.5}])
def test_an_option_changes_what_is_learnt_and_not_the_first_loss(
    tree: dict[str, Any], tiny_run: Path, change: dict[str, Any]
) -> None:
    plain = settings(without_vit(tree), backbone=str(tiny_run))
    changed = settings(without_vit(tree), backbone=str(tiny_run), **change)
    assert torch.equal(head_of(changed), head_of(changed))
    assert not torch.equal(head_of(changed), head_of(plain))
    assert final(Finetuning(changed)).first_loss == pytest.approx(math.log(3), abs=1e-6)


def test_a_network_of_timm_is_fine_tuned_like_any_other(tree: dict[str, Any], tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), tmp_path / "weights.pth")
    chosen = settings(
        without_vit(tree),
        backbone=f"timm:vit_tiny_patch16_224@{tmp_path / 'weights.pth'}",
        image_size=[48, 48],
        vit={"pool": "mean"},
        optimizer={"kind": "adamw", "layer_decay": 0.65},
    )
    result = transfer(chosen)
    assert result.first_loss == pytest.approx(math.log(3), abs=1e-6)
    assert result.origin == f"timm vit_tiny_patch16_224, weights of {tmp_path / 'weights.pth'}"
    line = json.loads((Path(tree["out"]) / "results.jsonl").read_text())
    assert line["settings"]["vit"]["image_size"] == [48, 48]
    again = replace(chosen, vit=resolve(VitConfig, line["settings"]["vit"]))  # what is recorded can be run
    assert final(Finetuning(again)).top1 == result.top1


def test_a_class_that_is_not_tested_is_said_and_left_out_of_the_mean(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(Path(tree["shards"]).parent / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "test" / "class2")
    shard_corpus(ShardOptions(source=str(tmp_path / "images"), out=str(tmp_path / "set"), workers=0))
    result = transfer(settings(tree, shards=str(tmp_path / "set"), metric="mean_per_class", steps=40))
    said = capsys.readouterr().out
    assert "note: class 'class2' is not in the test split" in said
    assert f"mean of the classes {result.top1_per_class:.2f} %" in said
    assert result.top1_per_class > 90 and result.metric == "mean_per_class"


def test_a_class_that_is_tested_but_not_trained_on_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(Path(tree["shards"]).parent / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "train" / "class1")
    shard_corpus(ShardOptions(source=str(tmp_path / "images"), out=str(tmp_path / "set"), workers=0))
    with pytest.raises(DataError, match="class 'class1' is in the test split but without an image in the train split"):
        Finetuning(settings(tree, shards=str(tmp_path / "set")))


def test_few_images_are_one_batch_in_even_parts(tree: dict[str, Any]) -> None:
    job = Finetuning(settings(tree, labels_per_class=5, global_batch=64, micro_batch=4))
    assert job._divide(job.chosen) == (15, 3, 5)
    assert final(job).images_seen == 45


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"labels_per_class": 21}, DataError, "labels_per_class=20"),
        ({"labels_per_class": 1, "learning_rates": [0.1, 0.2]}, DataError, "none is left"),
        ({"test_split": "val"}, DataError, "no split 'val'"),
        ({"test_split": "train"}, ConfigError, "test_split is train_split, 'train'"),
        ({"backbone": "nowhere"}, CheckpointError, "no backbone at nowhere"),
        ({"backbone": __file__}, CheckpointError, "not a backbone that mpp wrote"),
        ({"image_size": [9, 9]}, ConfigError, "patch size"),
        ({"micro_batch": 5}, ConfigError, "use 1, 2, 3, 4, 6, 12"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tree: dict[str, Any], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        transfer(settings(tree, **changes))
    assert not Path(tree["out"]).exists()


def test_shards_without_labels_are_refused(tree: dict[str, Any], bare_tiny_shards: Path) -> None:
    with pytest.raises(DataError, match="no labels"):
        transfer(settings(tree, shards=str(bare_tiny_shards)))


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="out=FOLDER"):
        transfer(settings(tree, out=str(tmp_path / "file" / "out")))
    assert "finetune" not in capsys.readouterr().out


def test_rates_of_zero_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="learning_rates"):
        settings(tree, learning_rates=[0.0])
