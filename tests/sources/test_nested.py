"""Archives within archives are entered, compressed ones unpacked once; nothing else is written anywhere."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.errors import DiskError
from mpp.sources.members import Damaged
from mpp.sources.nested import DEEPEST, files_in, is_archive, read_place, without_suffix

Files = dict[str, bytes]
FILES = {"n01/1.jpg": b"one", "n01/2.jpg": b"two" * 1000}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tbz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".txz": lzma.compress,
}


def tarred(files: Files) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def listed(folder: Path, name: str, raw: bytes) -> Files:
    """Read every file of an archive by its place alone."""
    (folder / name).write_bytes(raw)
    spool = folder / "spool"
    places = [(item.path, item.place) for item in files_in(folder / name, name, spool)]
    return {path: read_place(place, folder, spool) for path, place in places}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, suffix: str) -> None:
    raw = COMPRESS[suffix](tarred(FILES))
    assert listed(tmp_path, f"x{suffix}", raw) == FILES
    (spooled,) = (tmp_path / "spool").iterdir()
    before = spooled.stat().st_mtime_ns
    assert [item.path for item in files_in(tmp_path / f"x{suffix}", f"x{suffix}", tmp_path / "spool")] == list(FILES)
    assert spooled.stat().st_mtime_ns == before
    os.utime(tmp_path / f"x{suffix}", ns=(1, 1))
    assert len(list(files_in(tmp_path / f"x{suffix}", f"x{suffix}", tmp_path / "spool"))) == 2
    assert len(list((tmp_path / "spool").iterdir())) == 2, "another file of the same name is unpacked anew"


@pytest.mark.parametrize(
    ("outer", "inner", "spooled"),
    [
        (tarred, tarred(FILES), 0),
        (tarred, zipped(FILES), 0),
        (lambda files: zipped(files, zipfile.ZIP_STORED), tarred(FILES), 0),
        (lambda files: zipped(files, zipfile.ZIP_STORED), zipped(FILES), 0),
        (zipped, tarred(FILES), 1),
        (zipped, zipped(FILES), 1),
        (zipped, gzip.compress(tarred(FILES)), 2),
        (tarred, gzip.compress(tarred(FILES)), 1),
        (lambda files: gzip.compress(tarred(files)), gzip.compress(tarred(FILES)), 2),
    ],
)
def test_an_archive_within_another_is_a_folder_of_its_stem(
    tmp_path: Path, outer: Callable[[Files], bytes], inner: bytes, spooled: int
) -> None:
    kind = {b"PK": ".zip", b"\x1f\x8b": ".tgz"}.get(inner[:2], ".tar")
    raw = outer({"before.jpg": b"b", f"deep/animals{kind}": inner, "after.jpg": b"a"})
    name = {b"PK": "x.zip", b"\x1f\x8b": "x.tgz"}.get(raw[:2], "x.tar")
    expected = {f"deep/animals/{path}": data for path, data in FILES.items()}
    assert listed(tmp_path, name, raw) == {"before.jpg": b"b", **expected, "after.jpg": b"a"}
    spool = tmp_path / "spool"
    assert len(list(spool.iterdir()) if spool.exists() else []) == spooled


def test_archives_are_entered_so_deep_and_no_deeper(tmp_path: Path) -> None:
    raw, path = tarred({"1.jpg": b"one"}), "1.jpg"
    for level in range(1, DEEPEST):
        raw, path = tarred({f"{level}.tar": raw}), f"{level}/{path}"
    assert listed(tmp_path, "x.tar", raw) == {path: b"one"}
    with pytest.raises(OSError, match="an archive within 4 others, which is not entered"):
        listed(tmp_path, "x.tar", tarred({"top.tar": raw}))


def test_hidden_names_are_skipped_and_twins_told_apart(tmp_path: Path) -> None:
    target = io.BytesIO()
    names = ("./1.jpg", "1.jpg", "a/._1.jpg", ".hidden/1.jpg", "../2.jpg", "a.tar", "a.tar")
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name in names:
            data = tarred({"3.jpg": b"three"}) if name == "a.tar" else name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "x.tar").write_bytes(target.getvalue())
    items = list(files_in(tmp_path / "x.tar", "x.tar", tmp_path))
    assert [item.path for item in items] == ["1.jpg", "1.jpg#2", "../2.jpg", "a/3.jpg", "a/3.jpg"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_bytes_that_end_early_or_are_none_are_damage_and_leave_nothing(tmp_path: Path, suffix: str) -> None:
    raw = COMPRESS[suffix](tarred({"1.jpg": os.urandom(50_000)}))
    for bad in (raw[: len(raw) // 2], b"no archive at all", b""):
        with pytest.raises(Damaged, match=r"cannot be unpacked|cut off at byte 0"):
            listed(tmp_path, f"x{suffix}", bad)
    assert not [file for file in (tmp_path / "spool").iterdir() if file.stat().st_size]


def test_damage_within_says_where(tmp_path: Path) -> None:
    inner = tarred({"1.jpg": b"one"})[:600]
    with pytest.raises(Damaged, match=r"in a\.tar: in a/b\.tar: cut off at byte 1624"):
        listed(tmp_path, "x.tar", tarred({"a.tar": tarred({"b.tar": inner})}))
    with pytest.raises(Damaged, match=r"in b\.zip: no directory at its end"):
        listed(tmp_path, "x.tar", tarred({"b.zip": zipped(FILES)[:50]}))


def test_a_full_disk_while_unpacking_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match="No space left on device"):
        listed(tmp_path, "x.tgz", gzip.compress(tarred(FILES)))
    assert list((tmp_path / "spool").iterdir()) == []


def test_archives_are_known_by_their_names() -> None:
    names = ["a.tar", "b/A.TAR.GZ", "c.zip", "d.gz", "e.tar.zst", "tar"]
    assert [is_archive(name) for name in names] == [True, True, True, False, False, False]
    assert [without_suffix(name) for name in names] == ["a", "b/A", "c", "d.gz", "e.tar.zst", "tar"]


def test_two_archives_never_share_what_was_unpacked_from_them(tmp_path: Path) -> None:
    for name, data in (("1", b"one"), ("2", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tgz").write_bytes(gzip.compress(tarred({"1.jpg": data}), 0, mtime=0))
        os.utime(tmp_path / name / "x.tgz", ns=(1, 1))
    assert (tmp_path / "1/x.tgz").stat().st_size == (tmp_path / "2/x.tgz").stat().st_size
    found = []
    for name in ("1", "2"):
        for item in files_in(tmp_path / name / "x.tgz", "", tmp_path / "spool"):
            found.append(read_place(item.place, tmp_path / name / "x.tgz", tmp_path / "spool"))
    assert found == [b"one", b"two"]


@pytest.mark.parametrize("field", ["size", "crc"])
def test_an_inner_archive_that_is_not_what_its_zip_promises_is_damage_and_leaves_nothing(
    tmp_path: Path, field: str
) -> None:
    raw = bytearray(zipped({"in.tar": tarred(FILES)}))
    entry = raw.index(b"PK\1\2")
    begin = entry + {"size": 24, "crc": 16}[field]
    raw[begin : begin + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(Damaged, match=r"in in\.tar: .*(the zip promises 1000|checksum)"):
        listed(tmp_path, "x.zip", bytes(raw))
    assert list((tmp_path / "spool").iterdir()) == []
