"""``mpp probe`` as a person types it: a table, lines, one message for bad input."""

from pathlib import Path

import pytest

from mpp.probe import main


@pytest.fixture
def words(tiny_run: Path, tiny_shards: Path, tmp_path: Path) -> list[str]:
    """A command line with every probe into tmp_path/out."""
    out = tmp_path / "out"
    return [f"backbone={tiny_run}", f"shards={tiny_shards}", f"out={out}", "shots=[1,5]", "stream.workers=0"]


def test_a_backbone_is_probed_and_a_table_printed(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "masked_patches, 2 steps" in printed and "on 31 images" in printed
    assert "| few-shot 5 " in printed and "| class_token " in printed and "| patch_mean " in printed
    assert len((tmp_path / "out" / "probes.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (["shotz=[1]"], 2, "did you mean shots?"),
        (["test_split=train"], 2, "tested on what it was fitted to"),
        (["backbone=timm:vit_tyni_patch16_224"], 2, "backbone=timm:vit_tiny_patch16_224"),
        (["test_split=val"], 3, "no split 'val'"),
        (["shots=[21]"], 3, "has 20 labelled images"),
        (["backbone=missing"], 4, "no backbone at missing"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_folder(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: list[str], code: int, message: str
) -> None:
    assert main([*words, *wrong]) == code
    error = capfd.readouterr().err
    assert error.startswith("error: ") and message in error and "fix: " in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
