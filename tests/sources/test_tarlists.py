"""A source of tars is a folder, a tar, a glob or a pattern; what it names is said, and nothing secret is taken."""

import os
from pathlib import Path

import pytest
import webdataset

from mpp.errors import ConfigError, DataError
from mpp.sources.tarlists import find_tars, means_tars


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tars in a folder and two below it, and what is no tar."""
    for name in ("b.tar", "a.tar", "val/0.tar", "x/train-0.tar", "x/readme.txt", ".hidden/0.tar"):
        (tmp_path / "tars" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tars" / name).write_bytes(b"123")
    return tmp_path / "tars"


def names(source: str | Path, base: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(tar.name, base), tar.split) for tar in find_tars(str(source))]


def test_a_folder_gives_its_tars_sorted_with_the_splits_that_their_names_say(folder: Path) -> None:
    assert names(folder, folder) == [
        ("a.tar", "train"),
        ("b.tar", "train"),
        ("val/0.tar", "validation"),
        ("x/train-0.tar", "train"),
    ]
    tar = find_tars(str(folder))[0]
    status = (folder / "a.tar").stat()
    assert tar == (str(folder / "a.tar"), "train", 3, status.st_mtime_ns)
    assert {tar.split for tar in find_tars(str(folder), "test")} == {"test"}


def test_words_above_the_source_do_not_count_but_its_own_name_does(folder: Path) -> None:
    above = folder.parent / "test-run"
    (above / "val").mkdir(parents=True)
    (above / "0.tar").write_bytes(b"0")
    (above / "val/0.tar").write_bytes(b"0")
    assert names(above / "0.tar", above) == [("0.tar", "train")]
    assert names(above / "val", above) == names(f"{above}/val/{{0..0}}.tar", above) == [("val/0.tar", "validation")]


def test_braces_are_expanded_as_webdataset_does(folder: Path) -> None:
    for name in ("test-08.tar", "test-09.tar", "test-10.tar", "train-10.tar"):
        (folder / name).write_bytes(b"0")
    pattern = f"{folder}/test-{{08..10}}.tar"
    assert [tar.name for tar in find_tars(pattern)] == webdataset.shardlists.expand_urls(pattern)
    assert names(f"{folder}/{{test,train}}-10.tar", folder) == [("test-10.tar", "test"), ("train-10.tar", "train")]
    assert names(f"{folder}/t*-10.tar", folder) == [("test-10.tar", "test"), ("train-10.tar", "train")]
    assert len(find_tars(f"{folder}/**/*.tar")) == 8
    url = "https://host/train/x-{000..011}.tar"
    assert [tar.name for tar in find_tars(url)] == webdataset.shardlists.expand_urls(url)
    assert find_tars(url)[0] == ("https://host/train/x-000.tar", "train", 0, 0)
    assert find_tars(f"file://{folder}/a.tar")[0].name == str(folder / "a.tar")


def test_a_name_with_braces_is_a_name_where_it_exists(folder: Path) -> None:
    (folder / "x{1,2}.tar").write_bytes(b"0")
    assert names(f"{folder}/x{{1,2}}.tar", folder) == [("x{1,2}.tar", "train")]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.TAR.XZ"])
def test_compressed_tars_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"0")
    for source in (folder, folder / name, f"{folder}/x.*"):
        with pytest.raises(ConfigError, match=rf"{name}: a compressed tar(.|\n)*fix: unpack them, or mpp-shard"):
            find_tars(str(source))
    with pytest.raises(ConfigError, match="a compressed tar"):
        find_tars(f"https://host/{name}")


def test_what_is_not_there_or_named_twice_is_named(folder: Path) -> None:
    for source, message in (
        (folder / "c.tar", "c.tar: No such file"),
        (f"{folder}/{{a,c}}.tar", "c.tar: No such file"),
        (f"{folder}/z*.tar", "no tars there"),
        (folder / ".hidden/nothing", "nothing: No such file"),
        (f"{folder}/{{a,a}}.tar", "a.tar is named twice"),
        (f"{folder}/x/../{{a,x/../a}}.tar", "a.tar is named twice"),
        ("https://host/{a,a}.tar", "https://host/a.tar is named twice"),
    ):
        with pytest.raises(DataError, match=message):
            find_tars(str(source))
    (folder / "folder.tar").mkdir()
    with pytest.raises(DataError, match=r"folder\.tar: no file"):
        find_tars(f"{folder}/{{folder,a}}.tar")
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match="no tars there"):
        find_tars(str(folder.parent / "empty"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x-{0..9.tar", "UnbalancedBracesError"),
        ("x-{0..99999999999}.tar", "more than 1,000,000 tars"),
        ("x-{0..2000}{0..2000}.tar", "more than 1,000,000 tars"),
        ("pipe:cat x.tar", "pipe: is not read"),
        ("PIPE:cat {1..2}.tar", "pipe: is not read"),
        ("ssh://host/x.tar", "ssh: is not read"),
        ("https://host/*.tar", "stand for files of this machine"),
    ],
)
def test_patterns_and_schemes_that_are_not_read_are_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_tars(source)


@pytest.mark.parametrize(
    "url", ["https://me:sesame@host/{0..1}.tar", "http://sesame@b/x.tar", "https://h/x.tar?k=sesame"]
)
def test_urls_with_secrets_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(ConfigError, match="written into indexes") as caught:
        find_tars(url)
    assert "sesame" not in str(caught.value) and "fix: " in str(caught.value)


def test_names_that_cannot_be_written_are_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.tar")).write_bytes(b"0")
    with pytest.raises(DataError, match=r"xff\.tar: the path has characters"):
        find_tars(str(folder))


def test_the_form_of_a_source_tells_tars_from_sets(folder: Path) -> None:
    tars = (f"{folder}/a.tar", "x-{000..146}.tar", "https://host/x.tar", "s3://b/{a,b}.tar", f"{folder}/*.tar", "a.tgz")
    assert all(map(means_tars, tars))
    assert not any(map(means_tars, (str(folder), "https://host/set", "s3://b/set/", "nothing")))
