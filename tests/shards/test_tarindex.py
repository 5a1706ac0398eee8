"""The index of a tar written by others: its rows are webdataset's samples, and every fault is named."""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mpp.errors import ConfigError, DataError, DiskError
from mpp.shards import tarindex
from mpp.shards.shardset import MEMBER, sidecar
from mpp.shards.tarindex import IndexedTar, TarTask, index_tar
from mpp.sources.tarlists import find_tars

Files = Iterable[tuple[str, bytes]]


def pack(path: Path, files: Files, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def indexed(path: Path, labels: str = "auto", image: str | None = None) -> tuple[IndexedTar, list[list[bytes]]]:
    """Index a tar, and return the members that its table gives."""
    (tar,) = find_tars(str(path))
    result = index_tar(TarTask(tar, path.parent / "out", labels, image))
    table = np.frombuffer((path.parent / "out" / sidecar(tar.name, "members")).read_bytes(), MEMBER)
    raw, rows = path.read_bytes(), []
    for row in table.reshape(result.record.samples, len(result.record.members)):
        rows.append([raw[offset : offset + size] for offset, size, _ in row.tolist()])
        assert [zlib.crc32(data) for data in rows[-1]] == row["crc32"].tolist()
    return result, rows


def by_webdataset(path: Path) -> list[dict[str, bytes]]:
    with open(path, "rb") as stream:  # which webdataset itself leaves open
        files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        return list(webdataset.tariterators.group_by_keys(files))


@pytest.fixture
def samples(jpeg: Callable[[int], bytes]) -> list[tuple[str, bytes]]:
    """Five samples of a class, an image and a text."""
    return [
        (f"a/{number:04d}.{kind}", data)
        for number in range(5)
        for kind, data in (("cls", b"%d" % (number % 3)), ("jpg", jpeg(number)), ("txt", b"a cat\n" * 200))
    ]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_rows_are_the_samples_that_webdataset_yields(
    tmp_path: Path, samples: list[tuple[str, bytes]], dialect: int
) -> None:
    long = [("b/" * 40 + "x" * 60 + name[2:], data) for name, data in samples]
    path = pack(tmp_path / "x.tar", [*samples, ("__meta__/0.jpg", b"no"), ("README", b"no"), *long], format=dialect)
    (record, *_), rows = indexed(path)
    assert rows == [[sample["cls"], sample["jpg"]] for sample in by_webdataset(path)] and len(rows) == 10
    raw, table = path.read_bytes(), (tmp_path / "out" / sidecar(str(path), "members")).read_bytes()
    assert (record.name, record.samples, record.bytes, record.members) == (str(path), 10, len(raw), ("cls", "jpg"))
    assert (record.sha256, record.layout_hash) == tuple(hashlib.sha256(data).hexdigest() for data in (raw, table))
    commit = json.loads((tmp_path / "out" / sidecar(str(path), "json")).read_bytes())
    assert commit == asdict(record) | {"members": ["cls", "jpg"]}


def test_members_of_a_sample_stand_in_any_order_and_images_have_any_kind(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    images = [jpeg(number) for number in range(4)]
    files = [("0.PNG", images[0]), ("0.cls", b" 7\n"), ("1.cls", b"1"), ("1.jpg", images[1]), ("2.jpg", images[2])]
    path = pack(tmp_path / "x.tar", [*files, ("2.cls", b"0"), ("3.webp", images[3]), ("3.cls", b"2")])
    result, rows = indexed(path)
    assert rows == [[b" 7\n", images[0]], [b"1", images[1]], [b"0", images[2]], [b"2", images[3]]]
    assert (result.record.members, result.largest, result.unlabelled.number) == (("cls", "jpg"), (7, "0"), 0)


def test_labels_are_left_alone_where_asked_and_where_there_are_none(
    tmp_path: Path, samples: list[tuple[str, bytes]], jpeg: Callable[[int], bytes]
) -> None:
    result, rows = indexed(pack(tmp_path / "x.tar", samples), labels="none")
    assert result.record.members == ("jpg",) and rows == [[jpeg(number)] for number in range(5)]
    bare = pack(tmp_path / "y.tar", [file for file in samples if ".cls" not in file[0]])
    result, rows = indexed(bare)
    assert (result.record.members, result.unlabelled) == (("jpg",), (5, "a/0000")) and len(rows) == 5
    odd = pack(tmp_path / "z.tar", [("0.cls", b"cat"), ("0.jpg", jpeg(0))])
    assert indexed(odd, labels="none")[1] == [[jpeg(0)]]


def test_a_tar_with_classes_in_some_samples_has_no_table(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    (tar,) = find_tars(str(pack(tmp_path / "x.tar", [file for file in samples if file[0] != "a/0003.cls"])))
    result = index_tar(TarTask(tar, tmp_path / "out", "auto", None))
    assert result.unlabelled == (1, "a/0003") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1.5", b"", b"1" * 300, "٣".encode(), b"1e3"])
def test_a_class_that_is_no_number_is_named(tmp_path: Path, jpeg: Callable[[int], bytes], label: bytes) -> None:
    path = pack(tmp_path / "x.tar", [("0.cls", b"0"), ("0.jpg", jpeg(0)), ("1.cls", label), ("1.jpg", jpeg(1))])
    with pytest.raises(
        DataError, match=r"x\.tar: 1\.cls holds b'.*a class is a number\n  fix: mpp index TARS OUT labels=none"
    ):
        indexed(path)


def test_samples_without_an_image_are_counted(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    missing = ("a/0001.jpg", "a/0004.jpg")
    result, rows = indexed(pack(tmp_path / "x.tar", [file for file in samples if file[0] not in missing]))
    assert (result.bare, result.record.refused, len(rows)) == ((2, "a/0001"), 2, 3)


def test_links_and_devices_are_no_images(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../evil.jpg")
        info.size = len(jpeg(0))
        tar.addfile(info, io.BytesIO(jpeg(0)))
    assert indexed(path)[1] == [[jpeg(0)]]
    assert {found.name for found in tmp_path.rglob("*")} >= {"x.tar", "out"} and not list(tmp_path.rglob("evil*"))


def test_the_image_of_several_is_chosen_by_its_extension(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    files = [(f"{number}.{kind}", jpeg(number + len(kind))) for number in range(3) for kind in ("jpg", "seg.png")]
    path = pack(tmp_path / "x.tar", files)
    with pytest.raises(
        ConfigError, match=r"x\.tar: 2 images in the sample 0 \(jpg, seg\.png\)\n  fix: mpp index TARS OUT image=jpg"
    ):
        indexed(path)
    for kind in ("jpg", "seg.png"):
        result, rows = indexed(path, image=kind)
        assert rows == [[sample[kind]] for sample in by_webdataset(path)] and result.record.members == (kind,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["0.jpg", "1.jpg", "0.cls"], r"1 keys come back after others \(0\)\n  fix: put the members"),
        (["0.jpg", "1.jpg", "0.jpg", "1.jpg", "2.jpg"], r"2 keys come back after others \(0, 1\)"),
        (["0.jpg", "0.jpg"], r"two members called 0\.jpg\n  fix: put"),
        (["0.jpg", "0.JPG"], r"two members called 0\.jpg"),
        (["0.txt", "1.txt"], r"no images in it, 2 samples without\n  fix: leave this tar out, or image=EXT"),
        ([], r"empty, no samples in it"),
        (["noextension", ".hidden.jpg"], r"empty, no samples in it"),
    ],
)
def test_keys_that_come_back_and_tars_without_images_are_named(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(DataError, match=r"x\.tar: " + message):
        indexed(pack(tmp_path / "x.tar", [(name, b"7") for name in files]))


def test_a_tar_cut_anywhere_is_named_with_what_came_before(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    raw = pack(tmp_path / "whole.tar", samples).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        third = tar.getmember("a/0003.cls").offset  # webdataset reads three samples of a tar that ends here
    path = tmp_path / "x.tar"
    path.write_bytes(raw[:third])
    assert len(by_webdataset(path)) == 3
    for size, before in ((third, 3), (third + 100, 3), (third + 1536 + 100, 3), (700, 0)):
        path.write_bytes(raw[:size])
        with pytest.raises(DataError, match=r"x\.tar: (cut off|no tar header) at byte \d+") as caught:
            indexed(path)
        assert f"; {before} samples before that" in str(caught.value) and "get x.tar again" in str(caught.value)
        assert not (tmp_path / "out").exists()
    path.write_bytes(raw[:third] + bytes(3 * 2**20))
    with pytest.raises(DataError, match=rf"nothing but zeros from byte {third}"):
        indexed(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.tar: empty, 0 bytes"):
        indexed(path)


def test_what_is_no_tar_shows_how_it_begins(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"<html>please log in</html>".ljust(2048))
    with pytest.raises(DataError, match=r"no tar header at byte 0 .*; it begins with b'<html>please log in"):
        indexed(path)
    path.write_bytes(gzip.compress(pack(tmp_path / "y.tar", samples).read_bytes()))
    with pytest.raises(ConfigError, match=r"x\.tar: compressed by gzip(.|\n)*fix: unpack it"):
        indexed(path)


def test_a_tar_that_is_gone_or_changes_meanwhile_is_named(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    path = pack(tmp_path / "x.tar", samples)
    (tar,) = find_tars(str(path))
    task = TarTask(tar, tmp_path / "out", "auto", None)
    pack(path, samples[:3])
    with pytest.raises(DataError, match=r"x\.tar: changed while it was indexed"):
        index_tar(task)
    path.unlink()
    with pytest.raises(DataError, match=r"x\.tar: No such file"):
        index_tar(task)


def test_a_member_too_large_for_a_table_is_named(
    tmp_path: Path, samples: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarindex, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match=r"x\.tar: a/0000\.jpg has [\d,]+ bytes, at most 100"):
        indexed(pack(tmp_path / "x.tar", samples))


def test_no_room_is_a_disk_error(tmp_path: Path, samples: list[tuple[str, bytes]]) -> None:
    import resource

    path = pack(tmp_path / "x.tar", samples * 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(DiskError, match="File too large"):
            indexed(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
