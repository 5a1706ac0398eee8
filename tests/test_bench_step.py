"""tools/bench_step.py on tiny models: a race of mpp's alone, a profile, and the run for a GPU on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_a_race_shows_every_contestant_and_its_share_of_the_matrix_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_step

    monkeypatch.setattr(bench_step, "GEMM", 64)
    race = ["race", str(tmp_path), "--theirs", "--ours", "mpp", "mpp 2", "--sizes", "tiny", "--rounds", "2"]
    assert bench_step.main([*race, "--threads", "1"]) == 0
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:4]] == ["| mpp", "| mpp 2"]
    figures = json.loads((tmp_path / "race-tiny.json").read_text())
    assert [len(steps) for steps in figures["steps"].values()] == [2, 2]
    assert figures["flops"] > 0


def test_a_profile_divides_a_step_among_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_step

    assert bench_step.main(["profile", str(tmp_path), "--sizes", "tiny", "--rounds", "1", "--threads", "1"]) == 0
    kinds = [line.split("| ")[1].strip() for line in capsys.readouterr().out.splitlines() if line.endswith("% |")]
    assert {"matrix products", "attention", "norms", "GELU", "optimizer"} <= set(kinds)


@pytest.mark.slow
def test_the_run_for_a_gpu_goes_from_shards_to_a_utilisation(
    tmp_path: Path, tiny_shards: Path, tiny_vit: dict[str, Any]
) -> None:
    from bench_step_gpu import table

    tiny = [f"vit.{key}={value}" for key, value in tiny_vit.items() if key != "name"] + ["stream.workers=0"]
    name = tiny_vit["name"]
    lines, figures = table(tmp_path, str(tiny_shards), [name], overrides=tiny, side=64, most=4)
    found = figures["models"][name]
    assert found["micro_batch"] == 4
    assert len(found["laps"]) == 4
    assert 0 < found["utilisation"] < 1
    assert lines[2].startswith(f"| {name} | 4 | ")


def test_the_tools_floating_point_count_is_six_per_weight_and_token() -> None:
    from bench_step_gpu import flops_per_image

    from mpp.config import resolve
    from mpp.model.vit import VitConfig

    shape = {"image_size": (8, 8), "patch_size": 2, "width": 16, "depth": 2, "heads": 2}
    vit = resolve(VitConfig, {"name": "vit_tiny_patch16_224", **shape})
    tokens, width = 17, 16
    blocks = 2 * (6 * 12 * width**2 * tokens + 6 * 2 * width * tokens**2)  # products of weights, and of tokens
    recomputed = 2 * 2 * width * tokens**2  # by the fused attention, in the backward pass
    stem, head = 4 * 12 * width * 16, 6 * 512 * width * 8  # no gradient goes to the pixels
    assert flops_per_image(vit) in (blocks + stem + head, blocks + stem + head + 2 * recomputed // 2)
