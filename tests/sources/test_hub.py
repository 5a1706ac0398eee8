"""All splits of a dataset by path or name; without a Hub that answers, what is cached, soon."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from mpp.errors import ConfigError, DataError
from mpp.sources import hub
from mpp.sources.hub import load_splits, offline_without_hub

Jpeg = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder: Path, split: str, jpeg: Jpeg, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": jpeg(n), "path": None} for n in range(count)], "label": list(range(count))}
    file = folder / f"{split}-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file


def test_a_folder_and_a_file_give_their_splits(tmp_path: Path, jpeg: Jpeg) -> None:
    for split, count in (("train", 3), ("test", 2)):
        file = write(tmp_path / "source", split, jpeg, count)
    loaded = load_splits(str(tmp_path / "source"))
    assert {split: len(table) for split, table in loaded.items()} == {"train": 3, "test": 2}
    assert all(table.cache_files for table in loaded.values())
    assert {split: len(table) for split, table in load_splits(str(file)).items()} == {"train": 2}


@pytest.mark.parametrize(
    ("source", "said"),
    [("missing", "no such folder"), ("/missing/name", "no such folder"), ("a/b/c", "no such folder")],
)
def test_what_is_neither_a_path_nor_a_name_is_refused_without_asking_the_hub(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_splits(source)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"images\.csv is no parquet file"):
        load_splits(str(tmp_path / "images.csv"))


def test_the_first_damaged_file_and_row_group_are_named(tmp_path: Path, jpeg: Jpeg) -> None:
    files = [write(tmp_path / "source", split, jpeg, 40) for split in ("train", "test")]
    content = bytearray(files[1].read_bytes())
    content[4:40] = bytes(36)
    files[1].write_bytes(content)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: row group 0 of 1 is damaged"):
        load_splits(str(tmp_path / "source"))


def test_a_hub_that_does_not_answer_leaves_the_cache_alone_and_settings_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    with offline_without_hub() as answers:
        assert not answers and datasets.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE
    assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == before
    with pytest.raises(DataError, match=r"owner/name: no such folder, .* the Hub does not answer within"):
        load_splits("owner/name")


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch, faulty_server: object) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", faulty_server.url("x").removesuffix("/x"))  # type: ignore[attr-defined]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with offline_without_hub() as answers:
        assert answers and not constants.HF_HUB_OFFLINE


def test_waiting_for_the_hub_is_bounded() -> None:
    assert hub.SECONDS <= 10
