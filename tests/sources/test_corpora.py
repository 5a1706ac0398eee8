"""SOURCE is recognised for what it is, or refused in one sentence."""

import io
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mpp.config import dump
from mpp.errors import ConfigError, DataError
from mpp.sources.archives import Archives
from mpp.sources.corpora import AnyCorpus, find_corpus, find_sources, open_corpus
from mpp.sources.folders import Folder
from mpp.sources.manifests import Manifest
from mpp.sources.tables import Dataset

Corpus = Callable[..., Path]
Jpeg = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., AnyCorpus]:
    def found(source: Path | str, labels: str = "auto", image: str | None = None) -> AnyCorpus:
        return find_corpus(str(source), labels, image, tmp_path / "spool")

    return found


def pack(file: Path, data: bytes) -> Path:
    with tarfile.open(file, "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return file


def images_in_parquet(file: Path, data: bytes) -> Path:
    stored = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    column = pyarrow.array([{"bytes": data, "path": None}], stored)
    pyarrow.parquet.write_table(pyarrow.table({"image": column, "path": ["x"]}), file)
    return file


@pytest.fixture
def everything(tmp_path: Path, jpeg: Jpeg) -> Path:
    """A folder with one source of every kind, each with one image."""
    root = tmp_path / "all"
    for name in ("folder", "parquet", "archives"):
        (root / name).mkdir(parents=True)
    (root / "folder" / "1.jpg").write_bytes(jpeg(1))
    images_in_parquet(root / "parquet" / "train.parquet", jpeg(1))
    images_in_parquet(root / "images.parquet", jpeg(1))
    pack(root / "archives" / "x.tar", jpeg(1))
    pack(root / "x.tar", jpeg(1))
    for suffix, text in ((".csv", "path\nfolder/1.jpg\n"), (".jsonl", '{"path": "folder/1.jpg"}\n')):
        (root / f"list{suffix}").write_text(text)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["folder/1.jpg"]}), root / "paths.parquet")
    return root


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("folder", Folder),
        ("parquet", Dataset),
        ("images.parquet", Dataset),
        ("archives", Archives),
        ("x.tar", Archives),
        ("list.csv", Manifest),
        ("list.jsonl", Manifest),
        ("paths.parquet", Manifest),
    ],
)
def test_every_kind_of_source_is_known_and_can_be_stored(
    everything: Path, find: Callable[..., AnyCorpus], jpeg: Jpeg, name: str, kind: type,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(everything)
    corpus = find(name)
    assert isinstance(corpus, kind)
    monkeypatch.chdir(tmp_path)
    again = open_corpus(dump(corpus))
    assert again == corpus
    (entry,) = again.entries()
    assert again.read(entry.split, entry.place) == jpeg(1)


def test_a_list_on_standard_input_starts_from_the_current_folder(
    everything: Path, find: Callable[..., AnyCorpus], jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(everything / "folder")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1.jpg\n")))
    corpus = find("-")
    monkeypatch.chdir("/")
    assert [corpus.read(entry.split, entry.place) for entry in corpus.entries()] == [jpeg(1)]


def test_a_folder_of_several_kinds_is_refused_naming_one_of_each(
    corpus: Corpus, find: Callable[..., AnyCorpus], jpeg: Jpeg
) -> None:
    root = corpus("assets/logo.jpg", "assets/second.jpg")
    images_in_parquet(root / "train-0.parquet", jpeg(1))
    found = r"both images \(assets/logo\.jpg\) and parquet files \(train-0\.parquet\) lie here"
    with pytest.raises(ConfigError, match=found) as caught:
        find(root)
    assert "subfolder" in str(caught.value)
    pack(root / "x.tar", jpeg(1))
    with pytest.raises(ConfigError, match=r"images .* and parquet files .* and archives \(x\.tar\) lie here"):
        find(root)


def test_sources_that_cannot_be_used_are_named(
    corpus: Corpus, find: Callable[..., AnyCorpus], tmp_path: Path, jpeg: Jpeg
) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    images_in_parquet(tmp_path / "two" / "train_and_test.parquet", jpeg(1))
    (tmp_path / "x.tar.zst").touch()
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / "x.rar").touch()
    pictures, archive = corpus("a/1.jpg"), pack(tmp_path / "x.tar", jpeg(1))
    for kind, source, options, message in (
        (ConfigError, tmp_path / "missing", (), "no such folder or file"),
        (ConfigError, tmp_path / "list.txt", (), r"is a file; SOURCE is(.|\n)*mpp-shard - OUT < list\.txt"),
        (DataError, tmp_path / "empty", (), "no images, no parquet files and no archives"),
        (ConfigError, "pipe:cat secrets", (), r"pipe:\.\.\.: SOURCE is no URL"),
        (ConfigError, "https://me:pw@host/x.csv?token=t", (), r"https://host/x\.csv\?token=\.\.\.: SOURCE is no URL"),
        (ConfigError, pictures, ("species",), "labels=species: a folder of images has no columns"),
        (ConfigError, pictures, ("auto", "pixels"), "image=pixels: a folder of images has no columns"),
        (ConfigError, archive, ("species",), "labels=species: an archive has no columns"),
        (DataError, tmp_path / "rest", (), r"no archives under this folder; x\.rar is an archive that is not read"),
        (ConfigError, tmp_path / "x.tar.zst", (), r"x\.tar\.zst: archives of this kind are not read"),
        (DataError, tmp_path / "two", (), r"train_and_test\.parquet names the splits test and train"),
        (ConfigError, str(tmp_path / "\udcff"), (), r"\\xff: the path of SOURCE is no UTF-8"),
    ):
        with pytest.raises(kind, match=message):
            find(source, *options)


def write_list(folder: Path, text: str) -> str:
    (folder / "list.yaml").write_text(text)
    return str(folder / "list.yaml")


def test_a_list_gives_several_sources_relative_to_itself(everything: Path, tmp_path: Path) -> None:
    (everything / "labels.csv").write_text("1.jpg,7\n")
    (everything / "none").touch()
    text = "sources:\n- {source: folder, labels: labels.csv, weight: 2}\n"
    text += "- {source: x.tar, labels: none, weight: 1, limit: 9}\n"
    first, second = find_sources(write_list(everything, text), "auto", None, tmp_path / "spool")
    assert (first.weight, first.limit, second.weight, second.limit) == (2, None, 1, 9)
    assert [entry.label for entry in first.corpus.entries()] == [7]
    assert isinstance(second.corpus, Archives) and second.corpus.labels == "none"
    text = "sources:\n- source: folder\n- {source: x.tar, labels: auto}\n"
    first, second = find_sources(write_list(everything, text), "none", None, tmp_path / "spool")
    assert isinstance(first.corpus, Folder) and first.corpus.labels == "none"
    assert isinstance(second.corpus, Archives) and second.corpus.labels == "auto"
    (only,) = find_sources(str(everything / "folder"), "none", None, tmp_path / "spool")
    assert (only.weight, only.limit, only.corpus) == (None, None, Folder(root=everything / "folder", labels="none"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]", "expected a mapping"),
        ("source: folder", "expected `sources:` and below it a list"),
        ("sources: []", "expected `sources:` and below it a list"),
        ("sources: [folder]", "source 1: 'folder', expected keys"),
        ("sources: [{source: folder}, {source: folder, label: none}]", "source 2(.|\n)*label: .*did you mean labels"),
        ("sources: [{labels: none}]", "source: required"),
        ("sources: [{source: folder, weight: 0}]", "weight: Input should be greater than 0"),
        ("sources: [{source: folder, limit: many}]", "limit: .*integer"),
        ("sources: [{source: folder, weight: 1}, {source: folder}]", "some sources have a weight and some have none"),
        ("sources: [{source: '-'}]", "standard input is no source of a list"),
        ("sources: [{source: nowhere}]", "nowhere: no such folder or file"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(everything: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_sources(write_list(everything, text), "auto", None, tmp_path / "spool")


SPLIT_PATHS = {
    "top": ("train/cat/1.jpg", "val/dog/2.jpg"),
    "words": ("train2017/cat/1.jpg", "val2017/dog/2.jpg"),
    "below": ("imagenette2/train/cat/1.jpg", "imagenette2/val/dog/2.jpg"),
    "deep": ("coco/images_train/cat/1.jpg", "coco/images_val/dog/2.jpg"),
}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("names", SPLIT_PATHS.values(), ids=SPLIT_PATHS)
def test_split_folders_are_the_same_in_folders_and_archives(
    corpus: Corpus, find: Callable[..., AnyCorpus], tmp_path: Path, names: tuple[str, ...], kind: str
) -> None:
    root = corpus(*names)
    if kind != "folder":
        root = Path(shutil.make_archive(str(tmp_path / "dataset"), kind, root))
    found = [(entry.split, entry.label) for entry in find(root).entries()]
    assert sorted(found) == [("train", "cat"), ("validation", "dog")]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_split_folders_below_class_folders_are_refused(
    corpus: Corpus, find: Callable[..., AnyCorpus], tmp_path: Path, kind: str
) -> None:
    root = corpus("cats/train/1.jpg", "cats/test/2.jpg", "dogs/train/3.jpg", "dogs/test/4.jpg")
    if kind != "folder":
        root = Path(shutil.make_archive(str(tmp_path / "dataset"), kind, root))
    with pytest.raises(DataError, match=r"cats/test/2\.jpg, cats/train/1\.jpg: folders named after splits count at"):
        list(find(root, "none").entries())


def splits_of(corpora: Iterable[AnyCorpus]) -> list[str]:
    return [entry.split for corpus in corpora for entry in corpus.entries()]


def test_a_single_file_named_after_a_split_is_that_split_where_nothing_in_it_says_another(
    everything: Path, find: Callable[..., AnyCorpus], jpeg: Jpeg
) -> None:
    images_in_parquet(everything / "validation.parquet", jpeg(1))
    (everything / "test.csv").write_text("path\nfolder/1.jpg\n")
    (everything / "my-val.jsonl").write_text('{"path": "folder/1.jpg", "split": "train"}\n{"path": "folder/1.jpg"}\n')
    pack(everything / "x-test.tar", jpeg(1))
    files = ("validation.parquet", "test.csv", "my-val.jsonl", "x-test.tar", "x.tar")
    found = splits_of(find(everything / name) for name in files)
    assert found == ["validation", "test", "train", "validation", "test", "train"]
    (everything / "train_val.csv").write_text("path,split\nfolder/1.jpg,val\n")
    assert splits_of([find(everything / "train_val.csv")]) == ["validation"]


def test_sources_of_a_list_are_the_splits_that_they_are_named_after_or_told_to_be(
    corpus: Corpus, tmp_path: Path
) -> None:
    root = corpus("im/train/cat/1.jpg", "im/val2017/dog/2.jpg", "other/train/cat/3.jpg", "other/val/dog/4.jpg")
    text = "sources:\n- source: im/train\n- source: im/val2017\n- {source: other, split: test}\n"
    found = [source.corpus for source in find_sources(write_list(root, text), "auto", None, tmp_path / "spool")]
    assert splits_of(found) == ["train", "validation", "test", "test"]
    assert [entry.label for corpus in found for entry in corpus.entries()] == ["cat", "dog", "cat", "dog"]
    again = open_corpus(dump(found[2]))
    assert again == found[2] and getattr(again, "root", None) == root / "other"
    files = [root / "other/train/cat/3.jpg", root / "other/val/dog/4.jpg"]
    assert [again.read("test", entry.place) for entry in again.entries()] == [file.read_bytes() for file in files]
    (root / "other" / "test").mkdir()
    (root / "other" / "val").rename(root / "other" / "test" / "val")
    (root / "other" / "train").rename(root / "other" / "test" / "train")
    found = [
        s.corpus for s in find_sources(write_list(root, "sources: [{source: other/test}]"), "none", None, tmp_path)
    ]
    assert splits_of(found) == ["train", "validation"], "what lies in it says more than its own name"


@pytest.mark.parametrize("pair", [("folder", "folder"), (".", "folder"), ("list.csv", "./list.csv"), ("x.tar", ".")])
def test_sources_of_a_list_that_overlap_are_refused(everything: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in ("parquet", "images.parquet", "paths.parquet", "archives"):
        (everything / name).rename(tmp_path / name)
    if "x.tar" not in pair:
        (everything / "x.tar").unlink()
    else:
        (everything / "folder" / "1.jpg").unlink()
    first, second = pair
    with pytest.raises(ConfigError, match=r"the sources .* overlap(.|\n)*list each image once"):
        text = f"sources: [{{source: {first}}}, {{source: {second}, limit: 1}}]"
        find_sources(write_list(everything, text), "auto", None, tmp_path / "spool")


def test_parquet_columns_that_hold_no_images_are_named(
    corpus: Corpus, find: Callable[..., AnyCorpus], jpeg: Jpeg
) -> None:
    root = corpus("images/1.jpg")
    (root / "tables").mkdir()
    table = pyarrow.table({"URL": [f"file://{root}/images/1.jpg"], "number": [1]})
    pyarrow.parquet.write_table(table, root / "tables" / "train.parquet")
    for column, kind in (("URL", "string"), ("number", "int64")):
        with pytest.raises(
            ConfigError, match=rf"image={column}: this column holds {kind}, no images(.|\n)*paths or URLs"
        ):
            find(root / "tables", "auto", column)
    with pytest.raises(ConfigError, match=r"0 image columns among URL, number, expected 1(.|\n)*paths or URLs"):
        find(root / "tables")
    (entry,) = find(root / "tables" / "train.parquet").entries()
    assert find(root / "tables" / "train.parquet").read("train", entry.place) == jpeg(0)
    with pytest.raises(DataError, match=r"train\.parquet:1: column 'number' is 1, expected a path"):
        list(find(root / "tables" / "train.parquet", "auto", "number").entries())
