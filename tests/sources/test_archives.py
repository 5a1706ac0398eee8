"""Archives are listed with splits, labels and bytes as their folders would be; hostile ones do nothing."""

import errno
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mpp.config import dump, resolve
from mpp.errors import ConfigError, DataError
from mpp.sources.archives import Archives, around_of, folder_in, open_archives
from mpp.sources.entries import Entry
from mpp.sources.files import MAX_FILE_BYTES
from mpp.sources.folders import Folder
from mpp.sources.splits import place_of

Jpeg = Callable[[int], bytes]


def pack(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def opened(root: Path, labels: str = "auto") -> Archives:
    spool = (root.parent if root.is_file() else root) / ".spool"
    return resolve(Archives, dump(open_archives(root, labels, spool)))


def entries(root: Path, labels: str = "auto") -> list[Entry]:
    return list(opened(root, labels).entries())


def labels_of(root: Path, labels: str = "auto") -> list[tuple[str, Any]]:
    return [(entry.source, entry.label) for entry in entries(root, labels)]


def test_a_tar_of_tars_is_listed_as_the_folders_it_was_packed_from(data: Path, tmp_path: Path) -> None:
    folder = data / "imagenette" / "train"
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for number in sorted(os.listdir(folder))[:3]:
            inner = pack(
                tmp_path / "inner.tar", ((f.name, f.read_bytes()) for f in sorted((folder / number).iterdir()))
            )
            outer.add(inner, f"{number}.tar")
    archive = opened(tmp_path / "ILSVRC2012_img_train.tar")
    listed = list(archive.entries())
    expected = [entry for entry in Folder(root=folder).entries() if entry.label in {e.label for e in listed}]
    assert [entry[2:] for entry in listed] == [entry[2:] for entry in expected]
    assert {entry.split for entry in listed} == {"train"}
    for ours, theirs in list(zip(listed, expected, strict=True))[::37]:
        assert archive.read("train", ours.place) == (folder / theirs.source).read_bytes()
    assert not (tmp_path / ".spool").exists()


def test_folders_in_an_archive_are_labels_and_its_own_stem_is_only_where_asked_for(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tmp_path / "set"
    pack(root / "cats.tar", [("1.jpg", jpeg(1))])
    pack(root / "dogs.tar", [("2.jpg", jpeg(2)), ("notes.txt", b"no image")])
    assert labels_of(root) == [("cats/1.jpg", None), ("dogs/2.jpg", None)]
    assert labels_of(root, "folders") == [("cats/1.jpg", "cats"), ("dogs/2.jpg", "dogs")]
    single = pack(tmp_path / "pets.tar", [("cat/1.jpg", jpeg(1)), ("dog/x/2.jpg", jpeg(2))])
    assert labels_of(single) == [("cat/1.jpg", "cat"), ("dog/x/2.jpg", "dog")]
    with pytest.raises(ConfigError, match=r"labels=folders, but 1\.jpg lies in no class folder"):
        entries(root / "cats.tar", "folders")


@pytest.mark.parametrize(
    ("name", "path", "split", "folder"),
    [
        ("train.tar", "n01/1.jpg", "train", "n01"),
        ("val-000.tar", "1.jpg", "validation", None),
        ("test/part0.tar", "1.jpg", "test", None),
        ("pets.tar", "test/cat/1.jpg", "test", "cat"),
        ("train.tar", "test/cat/1.jpg", "test", "cat"),
        ("pets.tar", "pets/val/cat/1.jpg", "validation", "cat"),
        ("pets.tar", "pets/cat/1.jpg", None, "cat"),
        ("pets.tar", "/../cat/1.jpg", None, "cat"),
        ("pets.tar", "1.jpg", None, None),
    ],
)
def test_paths_say_the_split_and_the_class(name: str, path: str, split: str | None, folder: str | None) -> None:
    for around in (around_of(name, Path(name).name), around_of("", Path(name).name)):
        if "/" not in name or around.prefix:
            place = place_of(folder_in(around, path), None)
            assert (place.split or around.split, place.folder) == (split, folder)


def test_split_folders_in_an_archive_hold_all_images_or_none(tmp_path: Path, jpeg: Jpeg) -> None:
    archive = pack(tmp_path / "pets.tar", [("train/1.jpg", jpeg(1)), ("2.jpg", jpeg(2))])
    with pytest.raises(DataError, match=r"2\.jpg lies outside the split folders \(train\)"):
        entries(archive)


def webdataset(file: Path, jpeg: Jpeg, labels: list[str | None]) -> Path:
    members = []
    for number, label in enumerate(labels):
        members.append((f"{number:04d}.jpg", jpeg(number)))
        if label is not None:
            members.insert(-1 if number % 2 else len(members), (f"{number:04d}.cls", label.encode()))
        members.append((f"{number:04d}.json", b"{}"))
    return pack(file, members)


def test_samples_of_a_webdataset_are_labelled_by_their_cls_members(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tmp_path / "set"
    webdataset(root / "train" / "shard-000000.tar", jpeg, ["3", "10\n", "0"])
    assert [(entry.split, entry.label) for entry in entries(root)] == [("train", 3), ("train", 10), ("train", 0)]
    assert [label for _, label in labels_of(root, "none")] == [None] * 3
    mixed = pack(tmp_path / "mixed.tar", [("n01/1.jpg", jpeg(1)), ("n02/2.jpg", jpeg(2)), ("n02/2.cls", b"7")])
    assert labels_of(mixed) == [("n01/1.jpg", "n01"), ("n02/2.jpg", 7)]
    named = webdataset(tmp_path / "named.tar", jpeg, ["cat", "dog"])
    assert [label for _, label in labels_of(named)] == ["cat", "dog"]


def test_a_sample_without_a_class_has_no_label_and_is_an_error_where_classes_are_asked_for(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    archive = webdataset(tmp_path / "x.tar", jpeg, ["1", None])
    assert [label for _, label in labels_of(archive)] == [1, None]
    with pytest.raises(DataError, match=r"0001\.jpg has no \.cls"):
        entries(archive, "cls")


def test_samples_of_one_key_in_a_row_keep_their_own_classes(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("a.jpg", jpeg(1)), ("a.cls", b"1")]
    expected = [("a.jpg", 0), ("a.jpg#2", 1)]
    assert labels_of(pack(tmp_path / "x.tar", members)) == expected


@pytest.mark.parametrize(("index", "key"), [("index.json", "classes"), ("_info.json", "class_names")])
def test_class_names_beside_or_above_the_archives_are_kept(tmp_path: Path, jpeg: Jpeg, index: str, key: str) -> None:
    archive = webdataset(tmp_path / "train" / "x.tar", jpeg, ["1", "0"])
    assert opened(archive).classes() is None
    (tmp_path / index).write_text(json.dumps({key: ["cat", "dog"]}))
    for root in (tmp_path, tmp_path / "train", archive):
        assert opened(root).classes() == ("cat", "dog")
    assert opened(tmp_path, "folders").classes() is None
    (tmp_path / index).write_text(json.dumps({key: {"cat": 1}}))
    assert opened(tmp_path).classes() is None


def test_labels_can_come_from_a_mapping_file(tmp_path: Path, jpeg: Jpeg) -> None:
    archive = pack(tmp_path / "x.tar", [("./a/1.jpg", jpeg(1)), ("b/2.jpg", jpeg(2))])
    (tmp_path / "labels.json").write_text('{"a/1.jpg": "cat", "2.jpg": "dog"}')
    assert labels_of(archive, str(tmp_path / "labels.json")) == [("a/1.jpg", "cat"), ("b/2.jpg", "dog")]


def test_names_in_archives_are_never_paths_and_nothing_is_executed(tmp_path: Path, jpeg: Jpeg) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    names = ("../../marker", "/abs.jpg", "a\0b.jpg", "x" * 10_000 + ".jpg", "twin.jpg", "twin.jpg", "\x1b[2J.png")
    target = tmp_path / "archives" / "evil.tar"
    target.parent.mkdir()
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate([*names, f"{marker}.jpg", "../up.jpg"]):
            info = tarfile.TarInfo("placeholder")
            info.pax_headers, info.size = {"path": name}, len(jpeg(number))
            tar.addfile(info, io.BytesIO(jpeg(number)))
        for name in ("s.pyd", "s.pickle", "s.pkl", "pipe:touch marker"):
            info = tarfile.TarInfo(name)
            info.size = len(pickle.dumps(Evil()))
            tar.addfile(info, io.BytesIO(pickle.dumps(Evil())))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}.jpg")
            info.type, info.linkname = kind, str(marker)
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    archives = opened(target)
    found = {entry.source: entry for entry in archives.entries()}
    images = ["../../marker", "/abs.jpg", "a\\x00b.jpg", names[3], "twin.jpg", "twin.jpg#2", "\\x1b[2J.png"]
    images += [f"{marker}.jpg", "../up.jpg"]
    assert list(found) == [*images, "kind2.jpg", "kind1.jpg", "kind3.jpg", "kind6.jpg"]
    assert [archives.read("train", found[name].place) for name in images] == [jpeg(n) for n in range(len(images))]
    for name, why in (("kind2.jpg", "symbolic link"), ("kind1.jpg", "hard link"), ("kind3.jpg", "device")):
        with pytest.raises(OSError, match=why):
            archives.read("train", found[name].place)
    assert sorted(tmp_path.rglob("*")) == before and not marker.exists()


def test_an_archive_that_was_cut_off_says_how_much_was_readable(tmp_path: Path, jpeg: Jpeg) -> None:
    archive = pack(tmp_path / "x.tar", [(f"{number}.jpg", jpeg(number)) for number in range(6)])
    with tarfile.open(archive) as tar:
        cut = tar.getmembers()[4].offset_data + 10
    os.truncate(archive, cut)
    with pytest.raises(DataError, match=rf"x\.tar: cut off at byte {cut} within .*; 4 images before that") as caught:
        entries(tmp_path)
    assert "fix: get x.tar again" in str(caught.value)


def test_an_archive_that_changed_after_the_listing_cannot_be_read(tmp_path: Path, jpeg: Jpeg) -> None:
    archive = pack(tmp_path / "x.tar", [("1.jpg", jpeg(1))])
    (entry,) = entries(archive)
    os.truncate(archive, 600)
    with pytest.raises(OSError, match="the archive has changed since it was listed") as caught:
        opened(archive).read("train", entry.place)
    assert caught.value.errno == errno.ESTALE
    pack(archive, [("2.jpg", jpeg(1))])  # of the same size: another image would be read under the old name
    with pytest.raises(OSError, match="the archive has changed since it was listed"):
        opened(archive).read("train", entry.place)
    archive.unlink()
    with pytest.raises(FileNotFoundError):
        Archives(root=archive, spool=tmp_path).read("train", entry.place)


def test_members_that_lie_about_their_size_do_not_spoil_the_listing(tmp_path: Path, jpeg: Jpeg) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("1.jpg", jpeg(1))
        archive.writestr("unnamed", jpeg(2))
        archive.writestr("README", "no image")
    raw = bytearray(target.getvalue())
    entry = raw.index(b"PK\1\2")
    raw[entry + 24 : entry + 28] = b"\xfe\xff\xff\xff"
    (tmp_path / "x.zip").write_bytes(raw)
    large, unnamed = entries(tmp_path / "x.zip")
    assert (large.size, unnamed.size) == (MAX_FILE_BYTES + 1, len(jpeg(2)))
    with pytest.raises(OSError, match="4294967294 bytes, at most"):
        opened(tmp_path / "x.zip").read("train", large.place)


def test_archives_without_images_and_classes_that_are_books_are_named(tmp_path: Path, jpeg: Jpeg) -> None:
    with pytest.raises(DataError, match="no images in it"):
        entries(pack(tmp_path / "a.tar", [("notes.txt", b"x")]))
    with pytest.raises(DataError, match=r"1\.cls has 300 bytes, a class at most 256"):
        entries(pack(tmp_path / "b.tar", [("1.jpg", jpeg(1)), ("1.cls", b"9" * 300)]))


def test_a_class_that_the_index_has_not_is_named(tmp_path: Path, jpeg: Jpeg) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    known = webdataset(tmp_path / "x.tar", jpeg, ["1", "cat"])
    assert [label for _, label in labels_of(known)] == [1, "cat"]
    for members in ([("1.jpg", jpeg(1)), ("1.cls", b"emu")], [("emu/1.jpg", jpeg(1))]):
        with pytest.raises(DataError, match=r"1\.jpg is of class emu, none of the 2 in index\.json"):
            entries(pack(tmp_path / "x.tar", members))


def test_links_and_devices_without_an_extension_are_no_images(tmp_path: Path, jpeg: Jpeg) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("latest", tarfile.SYMTYPE),
            ("dev/null", tarfile.CHRTYPE),
            ("train/1.jpg", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "train", len(jpeg(1)) * (kind == tarfile.REGTYPE)
            tar.addfile(info, io.BytesIO(jpeg(1)))
    archives = opened(tmp_path / "x.tar")
    assert [entry.source for entry in archives.entries()] == ["train/1.jpg"]
    assert archives.describe().endswith("x.tar; passed over: 2 files (no extension 2)")


def test_what_is_passed_over_is_counted_and_archives_that_are_not_read_are_named(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tmp_path / "set"
    pack(root / "a.tar", [("1.jpg", jpeg(1)), ("1.txt", b"a cat"), ("2.jpg", jpeg(2)), ("2.txt", b"a dog")])
    (root / "b.tar.zst").write_bytes(b"x")
    archives = opened(root)
    for _ in range(2):
        assert len(list(archives.entries())) == 2
        assert archives.describe() == (
            f"archives under {root}; passed over: 3 files (.txt 2, .tar.zst 1), "
            "of which b.tar.zst is an archive that is not read"
        )


def test_which_image_of_a_sample_is_meant_must_be_said(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [(f"{n}.{kind}", jpeg(n)) for n in (1, 2) for kind in ("jpg", "seg.png")]
    archive = pack(tmp_path / "x.tar", members)
    with pytest.raises(
        ConfigError, match=r"x\.tar: samples with 2 images each \(jpg, seg\.png at 1\.jpg\)(.|\n)*image=jpg"
    ):
        entries(archive)
    for image, names in ((".JPG", ["1.jpg", "2.jpg"]), ("seg.png", ["1.seg.png", "2.seg.png"])):
        chosen = open_archives(archive, "auto", tmp_path, image=image)
        assert [entry.source for entry in chosen.entries()] == names
        assert "passed over: 2 files" in chosen.describe()
    with pytest.raises(DataError, match="no images with the extension webp in it; passed over: 4 files"):
        list(open_archives(archive, "auto", tmp_path, image="webp").entries())
    described = pack(tmp_path / "y.tar", [("1.jpg", jpeg(1)), ("1.png", jpeg(2)), ("1.cls", b"0")])
    with pytest.raises(ConfigError, match="jpg, png at"):
        entries(described)


def test_dots_in_the_names_of_plain_archives_make_no_samples(tmp_path: Path, jpeg: Jpeg) -> None:
    names = ["2024.01.jpg", "2024.02.jpg", "a.jpg", "a.png"]
    assert [name for name, _ in labels_of(pack(tmp_path / "x.tar", [(name, jpeg(1)) for name in names]))] == names
