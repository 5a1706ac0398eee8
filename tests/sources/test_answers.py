"""Of a web server's answers only the bytes asked for are taken; others are asked for again, or shown and given up."""

import errno

import pytest
from faulty_server import ALWAYS, FaultyServer

from mpp.sources import remote
from mpp.sources.remote import TRIES, read_range

DATA = bytes(range(256)) * 400


@pytest.fixture
def server(faulty_server: FaultyServer) -> FaultyServer:
    (faulty_server.folder / "a.tar").write_bytes(DATA)
    return faulty_server


def _read(server: FaultyServer, offset: int = 1001, size: int = 50_000, total: int | None = len(DATA)) -> bytes:
    return read_range(server.url("a.tar"), offset, size, total=total)


@pytest.mark.parametrize(
    "faults",
    [
        "503 503",
        "500",
        "429",
        "408",
        "cut",
        "short",
        "long",
        "less",
        "more",
        "total",
        "other",
        "stall",
        "503 cut short",
    ],
)
def test_what_may_pass_is_asked_for_again_until_it_has(server: FaultyServer, faults: str) -> None:
    server.add_faults("a.tar", faults.split())
    retries: list[int] = []
    data = read_range(server.url("a.tar"), 1001, 50_000, total=len(DATA), on_retry=lambda: retries.append(1))
    assert data == DATA[1001:51_001]
    assert len(retries) == len(faults.split()) and server.asked("a.tar") == len(retries) + 1


@pytest.mark.parametrize("fault", ["more", "less", "cut"])
def test_the_length_is_checked_also_at_the_border_of_a_piece(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(remote, "PIECE", 10_000)
    server.add_faults("a.tar", [fault])
    assert _read(server) == DATA[1001:51_001] and server.asked() == 2


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, len(DATA)), (1, 70_000), (99_999, 2401), (65_536, 4096)])
@pytest.mark.parametrize("piece", [1000, 4096, 2**23])
def test_a_server_that_sends_the_whole_file_is_understood(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, offset: int, size: int, piece: int
) -> None:
    monkeypatch.setattr(remote, "PIECE", piece)
    server.add_faults("a.tar", ["whole"])
    assert _read(server, offset, size) == DATA[offset : offset + size]
    assert _read(server, offset, size) == DATA[offset : offset + size]
    asked = f"bytes={offset}-{offset + size - 1}"
    assert server.requests == [("a.tar", asked, "whole"), ("a.tar", asked, "")]


def test_nothing_is_asked_for_an_empty_range(server: FaultyServer) -> None:
    assert _read(server, 10, 0) == b"" and server.asked() == 0


@pytest.mark.parametrize(
    ("fault", "tries", "message"),
    [
        ("404", 1, r"status 404, 28 of 28 bytes came, which start with b'there is nothing to see here'$"),
        ("403", 1, r"status 403, .* which start with b'there is"),
        ("html", 1, r"a web page instead of the file, status 200, 13 of 13 bytes came, .* b'please log in'"),
        ("page", 1, r"a web page instead of the file, status 200, 41 of 41 .* b'<!DOCTYPE html><html>please log in"),
        ("503", TRIES, r"status 503, 28 of 28 bytes came, .* \(4 tries\)"),
        ("cut", TRIES, r"cut off, 25000 of 50000 bytes came, which start with .* \(4 tries\)"),
        ("short", TRIES, r"another length than the 50000 asked for, 49999 of 49999 bytes came"),
        ("long", TRIES, r"(another length than the 50000 asked for|cut off), 50000 of 50001 bytes came"),
        ("less", TRIES, r"a body of 49999 bytes where 50000 were due"),
        ("more", TRIES, r"a body of 50001 bytes where 50000 were due"),
        ("other", TRIES, r"status 206 for 'bytes 1000-50999/102400' instead of bytes 1001-51000"),
    ],
)
def test_what_does_not_pass_is_an_error_with_status_and_first_bytes_and_without_secrets(
    server: FaultyServer, fault: str, tries: int, message: str
) -> None:
    server.add_faults("a.tar", ALWAYS(fault))
    url = server.url("a.tar", user="me:sesame", query="token=sesame&v=3")
    with pytest.raises(OSError, match=message) as caught:
        read_range(url, 1001, 50_000)
    assert f"http://127.0.0.1:{server.server_port}/a.tar?token=...&v=...: " in str(caught.value)
    assert "sesame" not in str(caught.value) and "me:" not in str(caught.value)
    assert caught.value.errno == errno.EIO and caught.value.__cause__ is None
    assert server.asked() == tries


@pytest.mark.parametrize("fault", ["", "whole"])
@pytest.mark.parametrize(
    ("offset", "size", "total", "due"),
    [
        (1001, 50_000, len(DATA) + 1, "102401"),
        (1001, 50_000, 60_000, "60000"),
        (100_000, 2401, None, "at least 102401"),
        (200_000, 10, None, "at least 200010"),
        (200_000, 10, 300_000, "300000"),
    ],
)
def test_a_file_of_another_size_is_stale(
    server: FaultyServer, fault: str, offset: int, size: int, total: int | None, due: str
) -> None:
    server.add_faults("a.tar", ALWAYS(fault))
    with pytest.raises(OSError, match=f"a file of 102400 bytes instead of {due}, .*4 tries") as caught:
        _read(server, offset, size, total)
    assert caught.value.errno == errno.ESTALE


def test_a_server_that_always_stalls_is_given_up(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.1)
    server.add_faults("a.tar", ALWAYS("stall"))
    with pytest.raises(OSError, match=r"a\.tar: \w*TimeoutError \(4 tries\)"):
        _read(server)


def test_one_connection_serves_many_ranges(server: FaultyServer) -> None:
    _read(server)
    before = server.connections
    for offset in range(0, 100_000, 10_000):
        assert _read(server, offset, 999) == DATA[offset : offset + 999]
    assert server.connections == before
