"""Rows of datasets give their original bytes, their labels by the type of the column, or a sentence why not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mpp.config import dump, resolve
from mpp.errors import ConfigError, DataError
from mpp.sources.tables import Dataset, column_of, open_dataset

Jpeg = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_split(root: Path, split: str, jpeg: Jpeg, labels: list[int | None]) -> None:
    names = datasets.ClassLabel(names=["cat", "dog"])
    kinds = {"picture": datasets.Image(), "animal": names, "shade": datasets.Value("int64")}
    rows = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(len(labels))]
    columns = {"picture": rows, "animal": labels, "shade": [number % 3 for number in range(len(labels))]}
    columns["name"] = [f"n{number % 2}" for number in range(len(labels))]
    features = datasets.Features(kinds | {"name": datasets.Value("string")})
    root.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(root / f"{split}.parquet"))


@pytest.fixture
def parquet(tmp_path: Path, jpeg: Jpeg) -> Path:
    for split, count in (("train", 5), ("validation", 2)):
        write_split(tmp_path / "parquet", split, jpeg, [number % 2 for number in range(count)])
    return tmp_path / "parquet"


def opened(root: Path, labels: str = "auto", image: str | None = None) -> Dataset:
    files = sorted(map(str, root.rglob("*.parquet")))
    return resolve(Dataset, dump(open_dataset(str(root), files, labels, image)))


def counts(root: Path) -> dict[str, int]:
    return Counter(entry.split for entry in opened(root).entries())


def test_parquet_files_give_original_bytes_and_labels_by_feature_type(parquet: Path, jpeg: Jpeg) -> None:
    dataset = opened(parquet)
    listed = list(dataset.entries())
    assert dataset.classes() == ("cat", "dog")
    assert [(entry.split, entry.source, entry.label) for entry in listed[3:6]] == [
        ("train", "train[3] 3.jpg", 1),
        ("train", "train[4] 4.jpg", 0),
        ("validation", "validation[0] 0.jpg", 0),
    ]
    assert [entry.size for entry in listed[:5]] == [len(jpeg(number)) for number in range(5)]
    assert [dataset.read(entry.split, entry.place) for entry in listed[4:]] == [jpeg(4), jpeg(0), jpeg(1)]


@pytest.mark.parametrize(
    "pattern", ["cifar10-{}.parquet", "{}.parquet", "data/{}/0000.parquet", "animals_{}/0000.parquet"]
)
def test_the_split_of_a_parquet_file_is_a_word_of_its_name_or_folder(parquet: Path, pattern: str) -> None:
    for split in ("train", "validation"):
        target = parquet / pattern.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        (parquet / f"{split}.parquet").rename(target)
    assert counts(parquet) == {"train": 5, "validation": 2}


def test_a_word_inside_another_is_no_split(parquet: Path) -> None:
    (parquet / "validation.parquet").rename(parquet / "latest-contest.parquet")
    assert counts(parquet) == {"train": 7}


@pytest.mark.parametrize("none", [-1, None])
def test_a_split_without_any_label_is_left_out_and_one_with_some_is_an_error(
    tmp_path: Path, jpeg: Jpeg, none: int | None
) -> None:
    root = tmp_path / "hub"
    write_split(root, "test", jpeg, [none] * 3)
    with pytest.raises(DataError, match="no split has labels in 'animal'"):
        opened(root)
    write_split(root, "train", jpeg, [0, 1])
    assert counts(root) == {"train": 2}
    assert "test left out: none of its 3 images has a label in 'animal'" in opened(root).describe()
    assert Counter(entry.split for entry in opened(root, "none").entries()) == {"test": 3, "train": 2}
    write_split(root, "validation", jpeg, [1, none])
    with pytest.raises(DataError, match="validation: 1 of 2 images have no label in 'animal'"):
        opened(root)


def test_columns_of_a_dataset_can_be_named(parquet: Path) -> None:
    shades = opened(parquet, "shade", "picture")
    assert shades.classes() is None
    assert [entry.label for entry in shades.entries()] == [0, 1, 2, 0, 1, 0, 1]
    assert [entry.label for entry in opened(parquet, "name").entries()][:3] == ["n0", "n1", "n0"]
    assert {entry.label for entry in opened(parquet, "none").entries()} == {None}
    assert opened(parquet, "NAME", "Picture").label == "name"
    with pytest.raises(ConfigError, match=r"image=pic: no such column in .*; there are picture, animal, shade, name"):
        opened(parquet, "auto", "pic")
    with pytest.raises(ConfigError, match="labels=folders: no such column"):
        opened(parquet, "folders")
    with pytest.raises(DataError, match=r"column picture holds struct.*, labels are whole numbers or names"):
        opened(parquet, "picture")


def test_a_row_that_only_names_a_file_has_that_file_s_bytes(tmp_path: Path, jpeg: Jpeg) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    paths = [str(tmp_path / "1.jpg"), str(tmp_path / "missing.jpg"), None]
    table = pyarrow.table({"image": [{"bytes": None, "path": path} for path in paths]})
    stored = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))])
    (tmp_path / "parquet").mkdir()
    pyarrow.parquet.write_table(table.cast(stored), tmp_path / "parquet" / "train.parquet")
    dataset = opened(tmp_path / "parquet")
    named, missing, empty = dataset.entries()
    assert (named.size, dataset.read("train", named.place)) == (len(jpeg(1)), jpeg(1))
    with pytest.raises(FileNotFoundError):
        dataset.read("train", missing.place)
    assert dataset.read("train", empty.place) == b""


def test_a_column_with_a_dot_in_its_name_goes_before_a_field() -> None:
    table = pyarrow.table({"a.b": [1], "a": [{"b": 2, "c": 3}]})
    assert [column_of(table, name).to_pylist() for name in ("a.b", "a.c", "a")] == [[1], [3], [{"b": 2, "c": 3}]]
    with pytest.raises(KeyError):
        column_of(table, "d.b")


def test_files_that_are_no_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="its parquet files cannot be read"):
        opened(tmp_path)


def test_columns_that_promise_labels_or_splits_and_are_not_used_are_named(tmp_path: Path, jpeg: Jpeg) -> None:
    columns = {"image": [{"bytes": jpeg(0), "path": None}], "label": [3], "Split": ["test"]}
    file = str(tmp_path / "images.parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    said = open_dataset(file, [file], "auto", None).describe()
    assert "'label' is not used (labels=label takes it)" in said and "'Split' is not used (files are split by" in said
    assert "'label'" not in open_dataset(file, [file], "label", None).describe()
