"""Zips are walked as zipfile walks them; what cannot be trusted is refused or an OSError, never more than promised."""

import io
import struct
import zipfile
from pathlib import Path

import pytest

from mpp.sources import files
from mpp.sources.members import Damaged, Member, open_window
from mpp.sources.zips import read_zip_member, zip_members

FILES = [("a/1.jpg", b"one" * 1000), ("日本/ü.jpg", bytes(range(256)) * 5000), ("empty.jpg", b"")]


def packed(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.mkdir("a")
        for name, data in FILES:
            archive.writestr(name, data)
    return target.getvalue()


def walked(folder: Path, raw: bytes) -> list[Member]:
    (folder / "x.zip").write_bytes(raw)
    with open_window(folder / "x.zip") as window:
        return list(zip_members(window))


def read(folder: Path, member: Member) -> bytes:
    header, method, packed, size, crc = member.place
    with open_window(folder / "x.zip") as window:
        return read_zip_member(window, header, method, packed, size, crc)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh an archive that extracts itself"])
def test_names_and_bytes_are_those_that_were_packed(tmp_path: Path, method: int, before: bytes) -> None:
    members = walked(tmp_path, before + packed(method))
    assert [(member.name, read(tmp_path, member)) for member in members] == FILES
    assert [member.size for member in members] == [len(data) for _, data in FILES]


@pytest.mark.parametrize(
    ("name", "flag", "shown"),
    [
        ("日本".encode(), 8, "日本"),
        ("日本".encode(), 0, "日本"),
        (b"\x81nique", 0, "ünique"),
        (b"\x81nique", 8, "\udc81nique"),
    ],
)
def test_names_are_utf8_with_and_without_the_flag_or_else_of_dos(
    tmp_path: Path, name: bytes, flag: int, shown: str
) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("abcdef.jpg", b"x")
    raw = bytearray(target.getvalue())
    entry = raw.index(b"PK\1\2")
    raw[entry + 9], raw[entry + 46 : entry + 52] = flag, name
    assert [member.name for member in walked(tmp_path, bytes(raw))] == [f"{shown}.jpg"]


def test_large_zips_have_their_numbers_in_extra_fields(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive, archive.open("1.jpg", "w", force_zip64=True) as file:
        file.write(b"abc")
    raw = bytearray(target.getvalue())
    entry = raw.index(b"PK\1\2")
    name, end = struct.unpack_from("<H", raw, entry + 28)[0], raw.index(b"PK\5\6")
    raw[entry + 20 : entry + 28] = raw[entry + 42 : entry + 46] * 0 + b"\xff" * 8
    raw[entry + 30 : entry + 32] = struct.pack("<H", 20)
    raw[entry + 46 + name : end] = struct.pack("<2H2Q", 1, 16, 3, 3)
    directory = len(raw[entry:]) - 22
    tail = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, directory, entry)
    tail += struct.pack("<4sLQL", b"PK\6\7", 0, entry + directory, 1)
    tail += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with zipfile.ZipFile(io.BytesIO(raw[:-22] + tail)) as archive:
        assert archive.read("1.jpg") == b"abc"
    (member,) = walked(tmp_path, bytes(raw[:-22] + tail))
    assert read(tmp_path, member) == b"abc"


def test_what_is_encrypted_a_link_or_rarely_compressed_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("secret.jpg", b"x")
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("rare.jpg", b"x", zipfile.ZIP_LZMA)
    raw = bytearray(target.getvalue())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    found = [(member.name, member.refused) for member in walked(tmp_path, bytes(raw))]
    assert found == [
        ("secret.jpg", "encrypted"),
        ("link.jpg", "a symbolic link"),
        ("rare.jpg", "compressed by method 14, which is not read"),
    ]


def test_a_zip_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    raw = packed()
    for size in (0, 10, len(raw) // 2, len(raw) - 1):
        with pytest.raises(Damaged, match=f"at byte {size}: cut off, or no zip"):
            walked(tmp_path, raw[:size])
    bad = bytearray(raw)
    bad[raw.index(b"PK\1\2")] ^= 1
    with pytest.raises(Damaged, match="no entry of a zip's directory"):
        walked(tmp_path, bytes(bad))


def test_bytes_that_are_not_those_promised_are_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = walked(tmp_path, packed())[1]
    header, method, packed_size, size, crc = member.place
    for place, message in (
        ((header, method, packed_size, size - 1, crc), f"{size} or more bytes, the zip promises {size - 1}"),
        ((header, method, packed_size, size + 1, crc), f"{size} bytes, the zip promises {size + 1}"),
        ((header, method, packed_size // 2, size, crc), "bytes, the zip promises"),
        ((header, method, packed_size, size, crc ^ 1), "checksum"),
        ((header + 40, method, packed_size, size, crc), "no member of a zip at byte"),
        ((header + 2, 0, packed_size, packed_size, crc), "no member of a zip at byte"),
        ((2**70, method, packed_size, size, crc), "the archive has changed"),
    ):
        with pytest.raises(OSError, match=message):
            read(tmp_path, member._replace(place=place))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(OSError, match=f"{size} bytes, at most {size - 1}"):
        read(tmp_path, member)


def test_flipped_bits_in_packed_bytes_never_give_other_bytes(tmp_path: Path) -> None:
    raw = packed()
    member = walked(tmp_path, raw)[0]
    begin, found = raw.index(b"a/1.jpg") + 7, 0
    for offset in range(begin, begin + member.place[2]):
        bad = bytearray(raw)
        bad[offset] ^= 1
        (tmp_path / "x.zip").write_bytes(bad)
        try:
            assert read(tmp_path, member) == FILES[0][1]
        except OSError:
            found += 1
    assert found > member.place[2] / 2


def test_a_bomb_is_left_after_what_it_promised(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(200_000_000))
    member = walked(tmp_path, target.getvalue())[0]
    header, method, packed_size, _, crc = member.place
    with pytest.raises(OSError, match=r"^\d{4,6} or more bytes, the zip promises 1000"):
        read(tmp_path, member._replace(place=(header, method, packed_size, 1000, crc)))


def test_nothing_is_read_behind_the_end_of_what_was_packed(tmp_path: Path) -> None:
    member = walked(tmp_path, packed())[0]
    header, method, _, size, crc = member.place
    with open(tmp_path / "x.zip", "r+b") as file:
        file.truncate(2**30)
    assert read(tmp_path, member._replace(place=(header, method, 2**30 - 100, size, crc))) == FILES[0][1]


def test_backslashes_in_names_are_slashes(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("pets\\cat\\1.jpg", "pets\\"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"x")
    assert [member.name for member in walked(tmp_path, target.getvalue())] == ["pets/cat/1.jpg"]
