"""``mpp budget`` prints a page of at most 100 columns, or the same figures as JSON."""

import json
from pathlib import Path

import pytest

from mpp.budget import main

ROOT = Path(__file__).resolve().parent.parent
B16 = ["--config", str(ROOT / "configs" / "pretrain" / "vit_b16_imagenet.yaml")]
SMALL = [
    *("vit.name=vit_tiny_patch16_224", "vit.image_size=[8, 8]", "vit.patch_size=2", "vit.width=16", "vit.depth=2"),
    *("vit.heads=2", "global_batch=256", "steps=1000", "gpus=8", "stages=[0]"),
]


def test_the_page_holds_every_figure_within_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*B16, "gpus=8", "gpu=a100", "stages=[0, 2]"]) == 0
    page = capsys.readouterr().out
    assert all(len(line) <= 100 for line in page.splitlines())
    for words in (
        "86,193,152 parameters",
        "102 GFLOP an image",
        "8 x a100: 80 GB, 312 TFLOP/s, 400 W; utilisation 0.4, assumed",
        "micro-batches of 256 images, 2 of them a step",
        "images/s keep the GPUs busy",
        "for 100,000 steps (409.6 M images)",
        "kWh",
    ):
        assert words in page, words
    for way in ("DDP", "ZeRO 2", "ZeRO 2, offload"):
        assert len([line for line in page.splitlines() if line.startswith(f"{way} ") and " yes " in line]) >= 1, way


def test_what_does_not_fit_is_said_with_the_micro_batch_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "memory_gb=0.1", "micro_batch=32"]) == 0
    page = capsys.readouterr().out
    assert " yes " in page and " NO " not in page and "micro_batch=32 is the largest for DDP" in page
    assert main([*SMALL, "memory_gb=0.05", "global_batch=8192", "micro_batch=1024"]) == 0
    page = capsys.readouterr().out
    assert " NO " in page and " yes " not in page
    largest = next(int(line.split()[-1]) for line in page.splitlines() if line.startswith("DDP"))
    assert 32 <= largest < 1024 and f"micro_batch={2 ** (largest.bit_length() - 1)} is the largest for DDP" in page
    assert main([*SMALL, "memory_gb=0.0002"]) == 0
    assert "not even one image fits" in capsys.readouterr().out


def test_json_has_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "json=true"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 256_000 and figures["memory"][0]["name"] == "DDP"
    assert figures["gpu"] == {"memory_gb": 80, "tflops": 989, "watts": 700}


def test_the_command_line_of_pretraining_works_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*B16, "out=runs/b16", "stages=[0]", "gpus=3"]) == 2
    assert "divide" in capsys.readouterr().err
