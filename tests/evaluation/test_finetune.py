"""Fine-tuning: a zero head on any backbone, every test image once, a rate chosen without the test images."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mpp.config import merge, resolve
from mpp.errors import CheckpointError, ConfigError, DataError, DiskError, NumericsError
from mpp.evaluation.accuracy import Accuracy
from mpp.evaluation.backbones import load_vit
from mpp.evaluation.choosing import Choice, no_choice
from mpp.evaluation.finetune import Finetuning, Fitted, TransferResult, transfer
from mpp.evaluation.labels import read_labels
from mpp.evaluation.recipe import TransferConfig
from mpp.model.encoders import build_encoder
from mpp.model.mixing import Mixing
from mpp.model.tasks import Classification
from mpp.model.vit import Vit, VitConfig, resize_positions
from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus
from mpp.training.backbone import load_backbone, save_backbone


@pytest.fixture
def tree(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A transfer from scratch of three steps, as in a configuration file."""
    return {
        "backbone": "scratch",
        "shards": str(tiny_shards),
        "out": str(tmp_path / "out"),
        "vit": tiny_vit,
        "view": {"crop": "pad"},
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "steps": 3,
        "global_batch": 12,
        "stream": {"workers": 0},
    }


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


def test_the_rate_is_chosen_on_held_out_training_images_alone(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Finetuning(settings(tree, learning_rates=[0.3, 0.1, 0.2, 0.4], labels_per_class=10, held_out=0.2))
    scores = {0.1: 50.0, 0.2: 75.0, 0.3: 75.0}
    tested = []

    def fit(self: Finetuning, ids: Any, rate: float, title: str, stops: Sequence[int]) -> Iterator[Any]:
        assert np.array_equal(ids, self.fitted)
        if rate == 0.4:
            raise NumericsError("diverged")
        yield Fitted(3, rate, 0.0)  # type: ignore[arg-type]

    def test(self: Finetuning, task: Any, shards: Any, subset: Any) -> Accuracy:
        tested.append((shards.split, subset.tolist()))
        return Accuracy(scores[task], 100.0, 0.0, len(subset))

    monkeypatch.setattr(Finetuning, "_fit", fit)
    monkeypatch.setattr(Finetuning, "_test", test)
    choice = job.choose()
    assert (choice.learning_rate, choice.steps) == (0.2, 3)  # of two equals the smaller; one that diverges is none
    assert choice.held_out_top1 == {"0.1@3": 50.0, "0.2@3": 75.0, "0.3@3": 75.0}
    assert choice.trials == 4
    assert tested == [("train", job.held_out.tolist())] * 3
    assert len(job.held_out) == 6
    assert not set(job.held_out) & set(job.fitted)


def test_one_rate_needs_no_choice_and_holds_nothing_out(tree: dict[str, Any]) -> None:
    job = Finetuning(settings(tree))
    assert job.choose() == Choice(0.01, 3, 0, {}, 0, 0.0, 0.0)
    assert len(job.fitted) == 60
    assert len(job.held_out) == 0


def chosen_of(job: Finetuning) -> dict[str, Any]:
    """Return a choice as plain values, without what depends on the clock."""
    return {**asdict(job.choose()), "seconds": 0}


EARLY = {"steps": 6, "evaluate_every": 2, "learning_rates": [0.001, 0.01], "held_out": 0.2}


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


def test_the_best_step_of_the_best_rate_is_chosen_and_the_final_run_stops_there(tree: dict[str, Any]) -> None:
    job = Finetuning(settings(tree, **EARLY))
    choice = job.choose()
    assert list(choice.held_out_top1) == [f"{rate}@{steps}" for rate in ("0.001", "0.01") for steps in (2, 4, 6)]
    best = max(choice.held_out_top1.values())
    assert choice.held_out_top1[f"{choice.learning_rate:g}@{choice.steps}"] == best
    assert (choice.trials, choice.images_seen) == (2, 2 * 6 * 12)
    stopped = job.final(replace(choice, steps=2))
    assert choice.flops / choice.images_seen == pytest.approx(stopped.flops / stopped.images_seen)
    assert (stopped.steps, stopped.trials, stopped.images_seen) == (2, 2, 24)


def test_one_rate_has_something_to_choose_where_it_is_tested_on_its_way(tree: dict[str, Any]) -> None:
    choice = Finetuning(settings(tree, **{**EARLY, "learning_rates": []})).choose()
    assert list(choice.held_out_top1) == ["0.01@2", "0.01@4", "0.01@6"]
    assert (choice.learning_rate, choice.trials) == (0.01, 1)


def test_labels_of_the_test_split_cannot_influence_the_choice(tree: dict[str, Any], tmp_path: Path) -> None:
    honest = Finetuning(settings(tree, **EARLY))
    images = Path(tree["shards"]).parent / "images"
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "test")
    for number in range(3):  # the labels of the test split, turned round
        shutil.copytree(images / "test" / f"class{number}", tmp_path / "images" / "test" / f"class{(number + 1) % 3}")
    out = tmp_path / "set"
    shard_corpus(ShardOptions(source=str(tmp_path / "images"), out=str(out), shard_samples=10, workers=0))
    turned = Finetuning(settings(tree, shards=str(out), **EARLY))
    assert read_labels(turned.test).tolist() != read_labels(honest.test).tolist()
    choice = chosen_of(honest)
    assert chosen_of(turned) == choice
    tars = list(out.rglob("*test*.tar"))
    for tar in tars:
        tar.unlink()  # nor is it read
    assert tars and chosen_of(turned) == choice


def test_a_choice_is_a_function_of_the_settings(tree: dict[str, Any]) -> None:
    first, again = (chosen_of(Finetuning(settings(tree, ema=0.5, drop_path=0.2, **EARLY))) for _ in range(2))
    assert first == again


def test_where_every_rate_diverges_it_is_said(tree: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    job = Finetuning(settings(tree, learning_rates=[1e30, 1e35], steps=8))
    with pytest.raises(NumericsError, match="diverged at every learning rate"):
        job.choose()
    assert "rate 1e+30 diverged" in capsys.readouterr().out


def test_the_choice_is_made_by_the_metric(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([Accuracy(90.0, 100.0, 50.0, 12), Accuracy(80.0, 100.0, 60.0, 12)])
    monkeypatch.setattr(Finetuning, "_test", lambda *_: next(scores))
    choice = Finetuning(settings(tree, metric="mean_per_class", learning_rates=[0.1, 0.2])).choose()
    assert (choice.learning_rate, choice.held_out_top1) == (0.2, {"0.1@3": 50.0, "0.2@3": 60.0})


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


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(12, 12), (8, 14)])
def test_another_resolution_changes_positions_alone(
    tree: dict[str, Any], tiny_run: Path, size: tuple[int, int], interpolation: str
) -> None:
    chosen = settings(tree, backbone=str(tiny_run), image_size=list(size), interpolation=interpolation)
    backbone = load_backbone(str(tiny_run))
    vit = load_vit(chosen, backbone)
    weights = vit.timm.state_dict()
    assert vit.grid == (size[0] // 2, size[1] // 2)
    assert weights["pos_embed"].shape == (1, 1 + vit.num_patches, 16)
    assert torch.equal(weights["pos_embed"][:, 0], backbone.weights["pos_embed"][:, 0])
    for name in weights.keys() - {"pos_embed"}:
        assert torch.equal(weights[name], backbone.weights[name]), name
    assert final(Finetuning(chosen)).first_loss == pytest.approx(math.log(3), abs=1e-6)


def test_at_the_same_resolution_every_weight_stays(tree: dict[str, Any], tiny_run: Path) -> None:
    backbone = load_backbone(str(tiny_run))
    weights = load_vit(settings(tree, backbone=str(tiny_run)), backbone).timm.state_dict()
    assert all(torch.equal(weights[name], backbone.weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("vit", "size", "grids"),
    [
        ({"name": "vit_tiny_r_s16_p8_224", "image_size": [32, 64], "patch_size": None}, (64, 96), ((1, 2), (2, 3))),
        ({"parallel": True, "qk_norm": True, "bias": False, "pool": "map"}, (12, 8), ((4, 4), (6, 4))),
    ],
)
def test_a_backbone_of_another_family_changes_its_resolution_by_its_positions_alone(
    tree: dict[str, Any], tmp_path: Path, vit: dict[str, Any], size: tuple[int, int], grids: Any
) -> None:
    trained = Vit(settings(tree, vit=vit).vit)
    assert trained.grid == grids[0]
    save_backbone(tmp_path / "backbone.safetensors", trained, "a test")
    chosen = settings(without_vit(tree), backbone=str(tmp_path), image_size=size)
    moved = load_vit(chosen, load_backbone(str(tmp_path)))
    assert isinstance(moved, Vit) and moved.grid == grids[1]
    weights, before = moved.timm.state_dict(), trained.timm.state_dict()
    expected = resize_positions(before["pos_embed"], *grids, "bicubic")
    assert torch.equal(weights["pos_embed"], expected)
    assert all(torch.equal(weights[name], before[name]) for name in before.keys() - {"pos_embed"})
    assert final(Finetuning(chosen)).first_loss == pytest.approx(math.log(3), abs=1e-6)


def test_a_resnet_is_loaded_whole_for_any_resolution(tree: dict[str, Any], tmp_path: Path) -> None:
    nothing = dict.fromkeys(("patch_size", "width", "depth", "heads"))
    vit = settings(tree, vit={**nothing, "name": "resnetv2_50x1_bit", "pool": "mean"}).vit
    trained = build_encoder(vit)
    save_backbone(tmp_path / "backbone.safetensors", trained, "a test")
    chosen = settings(without_vit(tree), backbone=str(tmp_path), image_size=[20, 12])
    loaded, before = load_vit(chosen, load_backbone(str(tmp_path))), trained.timm.state_dict()
    assert loaded.settings.image_size == (20, 12)
    assert all(torch.equal(loaded.timm.state_dict()[name], value) for name, value in before.items())


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
