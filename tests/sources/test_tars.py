"""Tars of every dialect are walked as tarfile walks them, and damage is named with its byte."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpp.sources.members import Damaged, Member, open_window
from mpp.sources.tars import LONGEST_PADDING, tar_members

BLOCK = 512
NAMES = ("a.jpg", "x" * 10_000 + ".jpg", "日本/ü.jpg", "y/" * 60 + "z.jpg", os.fsdecode(b"\xff.jpg"))


def packed(files: Iterable[tuple[str, bytes]], **options: object) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", errors="surrogateescape", **options) as tar:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def walked(folder: Path, raw: bytes) -> list[Member]:
    (folder / "x.tar").write_bytes(raw)
    with open_window(folder / "x.tar") as window:
        return list(tar_members(window))


def contents(folder: Path, raw: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, raw[member.place[0] :][: member.place[1]]) for member in walked(folder, raw)]


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_bytes_are_those_that_were_packed(tmp_path: Path, dialect: int) -> None:
    files = [(name, name.encode("utf-8", "surrogateescape") * number) for number, name in enumerate(NAMES)]
    assert contents(tmp_path, packed(files, format=dialect)) == files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(st.tuples(st.text("ab/.", min_size=1, max_size=200), st.binary(max_size=1200)), max_size=6), st.booleans()
)
def test_any_tar_is_walked_as_tarfile_walks_it(tmp_path: Path, files: list[tuple[str, bytes]], pax: bool) -> None:
    raw = packed(files, format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        expected = [(info.offset_data, info.size) for info in tar if info.isfile()]
    assert [member.place for member in walked(tmp_path, raw)] == expected


def test_links_devices_and_sparse_files_are_refused_and_folders_passed_over(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for kind in (
            tarfile.DIRTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
        ):
            info = tarfile.TarInfo(f"kind{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, more in (("sparse.jpg", {"GNU.sparse.major": "1"}), ("good.jpg", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, more
            tar.addfile(info, io.BytesIO(b"abc"))
    found = [(member.name, member.refused) for member in walked(tmp_path, target.getvalue())]
    assert found == [
        ("kind2.jpg", "a symbolic link"),
        ("kind1.jpg", "a hard link"),
        ("kind3.jpg", "a device"),
        ("kind4.jpg", "a device"),
        ("kind6.jpg", "a pipe"),
        ("sparse.jpg", "a sparse file"),
        ("good.jpg", ""),
    ]


def test_an_old_sparse_file_with_further_headers_is_passed_over_whole(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 5
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:482] = (b"%011o\0" % 0) * 8
    header[483:495] = b"%011o\0" % 5
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    further = [bytearray(BLOCK), bytearray(BLOCK)]
    further[0][504] = 1
    raw = bytes(header) + b"".join(further) + b"data!".ljust(BLOCK, b"\0") + packed([("good.jpg", b"abc")])
    assert [(member.name, member.refused) for member in walked(tmp_path, raw)] == [
        ("sparse.jpg", "a sparse file"),
        ("good.jpg", ""),
    ]


def test_tars_strung_together_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = packed([("1.jpg", b"one")]), packed([("2.jpg", b"two")])
    assert contents(tmp_path, first + second) == [("1.jpg", b"one"), ("2.jpg", b"two")]


def test_a_tar_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    raw = packed([("1.jpg", b"x" * 700), ("日" * 200, b"y" * 512), ("3.jpg", b"")])
    whole = len(walked(tmp_path, raw))
    end = len(raw.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    assert whole == 3 and end < len(raw)
    for size in (0, 1, 511, 512, 700, 1536, 1537, *range(2048, end + 1, 256)):
        with pytest.raises(Damaged, match=r"byte \d+"):
            walked(tmp_path, raw[:size])


def test_a_flipped_bit_in_any_header_is_found(tmp_path: Path) -> None:
    raw = packed([("1.jpg", b"x" * 700), ("2.jpg", b"y")])
    for header in (0, 1536):
        for byte in (0, 100, 124, 130, 148, 156, 257, 400):
            bad = bytearray(raw)
            bad[header + byte] ^= 4
            with pytest.raises(Damaged, match=f"no tar header at byte {header}"):
                walked(tmp_path, bytes(bad))


def test_a_tail_that_was_lost_to_zeros_is_found(tmp_path: Path) -> None:
    raw = packed([("1.jpg", b"x" * 700)])
    assert len(walked(tmp_path, raw + bytes(LONGEST_PADDING // 2))) == 1
    with pytest.raises(Damaged, match="nothing but zeros from byte 1536 on"):
        walked(tmp_path, raw + bytes(2 * LONGEST_PADDING))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"30 path=too short\n", "extension that cannot be read"),
        (b"0 path=x\n", "extension that cannot be read"),
        (b"path=x\n", "extension that cannot be read"),
        (b"11 size=-9\n", "a size of '-9'"),
        (b"17 size=99999999\n", "cut off at byte"),
        (b"31 size=9999999999999999999999\n", "a size of '99999999999999999999'"),
    ],
)
def test_hostile_extended_headers_are_damage(tmp_path: Path, payload: bytes, message: str) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(payload)
    with pytest.raises(Damaged, match=message):
        walked(tmp_path, info.tobuf() + payload.ljust(BLOCK, b"\0") + packed([("1.jpg", b"x")]))


def test_a_negative_size_and_a_giant_name_are_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.size = -BLOCK
    with pytest.raises(Damaged, match="a size of -512"):
        walked(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4 * BLOCK))
    with pytest.raises(Damaged, match="a header extension of 2000001 bytes"):
        walked(tmp_path, packed([("x" * 2_000_000, b"")], format=tarfile.GNU_FORMAT))
