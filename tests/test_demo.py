"""The demo: real digits as files, four commands whose configs exist and agree, and failures passed on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mpp import demo
from mpp.cli import VERBS
from mpp.config import resolve
from mpp.evaluation.comparison import CompareConfig
from mpp.plain_yaml import read_yaml
from mpp.training.recipe import PretrainRecipe


def compared(name: str) -> CompareConfig:
    """Return a comparison of configs/compare."""
    tree = read_yaml(demo.CONFIGS / "compare" / f"{name}.yaml")
    return resolve(CompareConfig, {**tree, "shards": "shards", "out": "out"})


def test_the_digits_are_written_once_each_in_a_folder_per_split_and_class(tmp_path: Path) -> None:
    demo.write_digits(tmp_path)
    digits = load_digits()
    files = sorted(tmp_path.glob("*/*/*.png"), key=lambda file: file.name)
    assert [int(file.stem) for file in files] == list(range(1797))
    assert [int(file.parent.name) for file in files] == digits.target.tolist()
    assert {split.name: len(list(split.glob("*/*.png"))) for split in tmp_path.iterdir()} == {
        "train": 1348,
        "test": 449,
    }
    with Image.open(files[1000]) as image:
        assert np.array_equal(np.round(np.asarray(image) / 255 * 16), digits.images[1000])


def test_the_road_is_four_commands_whose_configs_exist() -> None:
    commands = demo.road(Path("out"))
    assert [command[1] for command in commands] == ["shard", "pretrain", "reconstruct", "compare"]
    for command in commands:
        assert command[0] == "mpp" and command[1] in VERBS
        assert all(Path(word).is_file() for word in command if word.endswith(".yaml"))


def test_the_comparison_finds_the_run_of_the_pretrain_command() -> None:
    commands = {command[1]: command for command in demo.road(Path("out"))}
    folder = f"out/comparison/pretrain/masked-seed{compared('digits').seeds[0]}"
    assert f"out={folder}" in commands["pretrain"] and folder in commands["reconstruct"]
    assert "out=out/comparison" in commands["compare"]


@pytest.mark.parametrize("name", ["digits", "cifar10_small"])
def test_a_comparison_pretrains_by_the_recipe_of_its_name(name: str) -> None:
    alone = resolve(PretrainRecipe, read_yaml(demo.CONFIGS / "pretrain" / f"{name}.yaml"))
    assert compared(name).pretrain == alone
    assert compared(name).seeds[0] == alone.seed


def test_at_the_end_the_commands_are_shown_with_the_place_for_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "road", lambda out: [["mpp", "shard", str(out / "images"), str(out / "shards")]])
    assert demo.main([str(tmp_path / "out")]) == 0
    shown = capfd.readouterr().out
    assert f"$ mpp shard {tmp_path}/out/images {tmp_path}/out/shards\n" in shown
    own = shown.partition("The same with your own images")[2]
    assert "  mpp shard YOUR_IMAGES YOUR_SHARDS\n" in own
    assert own.count("  mpp ") == 4 and str(tmp_path) not in own
    assert (tmp_path / "out" / "shards" / "index.json").is_file()


def test_a_command_that_fails_ends_the_demo_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "road", lambda out: [["mpp", "verify", str(out / "shards")], ["mpp", "never"]])
    assert demo.main([str(tmp_path / "out")]) == 3
    output = capfd.readouterr()
    assert "no shards here" in output.err and "this command of the demo failed: mpp verify" in output.err
    assert "never" not in output.out


def test_without_recipes_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CONFIGS", tmp_path / "configs")
    assert demo.main([str(tmp_path / "out")]) == 2
    assert "fix: run the demo from a clone" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
