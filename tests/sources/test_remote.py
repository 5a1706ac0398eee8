"""URLs are read with patience and within bounds, and errors show nothing that is secret."""

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import fsspec.asyn
import pytest
from faulty_server import FaultyServer

from mpp.errors import ConfigError
from mpp.sources import files, remote
from mpp.sources.remote import TRIES, check_scheme, download, read_pieces, read_range, read_url, redact, scheme_of

IMAGE = bytes(range(256)) * 1000


class Server(ThreadingHTTPServer):
    """A loopback server whose paths misbehave; it notes what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """``/busy`` is well at the third try; the others never are, or always."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        tries = self.server.asked.count(path)
        if path == "/busy" and tries < 3:
            self._answer(503, b"try later", len(b"try later"))
        elif path == "/cut" and tries < 3:
            self._answer(200, IMAGE[:1000], len(IMAGE))
            self.connection.shutdown(socket.SHUT_RDWR)
        elif path == "/always-cut":
            self._answer(200, IMAGE[:1000], len(IMAGE))
        elif path == "/missing":
            self._answer(404, b"<html>there is no such image</html>", 35)
        elif path == "/forbidden":
            self._answer(403, b"no", 2)
        elif path == "/limited":
            self._answer(429, b"slow down", 9)
        elif path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image.jpg")
            self.end_headers()
        elif path == "/login":
            self._answer(200, b"<html>please log in</html>", 26)
        elif path == "/stall":
            self._answer(200, IMAGE[:10], len(IMAGE))
            self.server.stop.wait(10)
        else:
            self._answer(200, IMAGE, len(IMAGE))

    def _answer(self, status: int, body: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with Server() as server:
        server.stop = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "tries"), [("image.jpg", 1), ("busy", 3), ("cut", 3), ("moved", 1)])
def test_an_image_is_tried_for_until_it_comes_whole(server: Server, path: str, tries: int) -> None:
    assert read_url(f"http://{server.address}/{path}") == IMAGE
    assert server.asked.count(f"/{path}") == tries


@pytest.mark.parametrize(
    ("path", "tries", "message"),
    [
        ("missing", 1, r"status 404, 35 of 35 bytes came, which start with b'<html>there is"),
        ("forbidden", 1, r"status 403, 2 of 2 bytes came"),
        ("limited", TRIES, rf"status 429, .* \({TRIES} tries\)"),
        ("always-cut", TRIES, r"cut off, 1000 of 256000 bytes came, which start with .* \(4 tries\)"),
    ],
)
def test_what_does_not_come_is_an_error_with_status_and_first_bytes(
    server: Server, path: str, tries: int, message: str
) -> None:
    with pytest.raises(OSError, match=message) as caught:
        read_url(f"http://me:sesame@{server.address}/{path}?token=sesame&size=3")
    assert f"http://{server.address}/{path}?token=...&size=...: " in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert server.asked.count(f"/{path}") == tries


def test_a_page_in_place_of_an_image_is_for_the_image_policy_to_refuse(server: Server) -> None:
    assert read_url(f"http://{server.address}/login") == b"<html>please log in</html>"


def test_a_server_that_stalls_or_is_gone_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 0.2)
    monkeypatch.setattr(remote, "TRIES", 2)
    with pytest.raises(OSError, match=r"/stall: \w*TimeoutError \(2 tries\)"):
        read_url(f"http://{server.address}/stall")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=r"/x\.jpg: ClientConnector\w*Error \(2 tries\)"):
            read_url(f"http://127.0.0.1:{unused.getsockname()[1]}/x.jpg")


@pytest.mark.parametrize(("path", "tries"), [("image.jpg", 1), ("busy", 3), ("cut", 3), ("moved", 1)])
def test_a_file_is_downloaded_whole_whatever_its_size(
    server: Server, path: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 1000)
    download(f"http://{server.address}/{path}", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == IMAGE and server.asked.count(f"/{path}") == tries


@pytest.mark.parametrize(
    ("path", "tries", "message"),
    [
        ("missing", 1, r"status 404, 35 of 35 bytes came, which start with b'<html>there is"),
        ("limited", TRIES, rf"status 429, .* \({TRIES} tries\)"),
        ("always-cut", TRIES, r"cut off, 1000 of 256000 bytes came, .* \(4 tries\)"),
        ("stall", TRIES, r"\w*Timeout\w* \(4 tries\)"),
    ],
)
def test_what_cannot_be_downloaded_is_an_error_without_secrets(
    server: Server, path: str, tries: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 0.2)
    with pytest.raises(OSError, match=message) as caught:
        download(f"http://me:sesame@{server.address}/{path}?token=sesame", tmp_path / "x")
    assert "sesame" not in str(caught.value) and server.asked.count(f"/{path}") == tries


def test_other_stores_are_downloaded_from_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(IMAGE)
    download(f"file://{tmp_path}/x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == IMAGE


def test_more_bytes_than_allowed_are_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(OSError) as caught:
        read_url(f"http://{server.address}/image.jpg")
    assert caught.value.errno == errno.EFBIG and server.asked == ["/image.jpg"]


def test_files_and_stores_are_read_through_the_same_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ü 1.jpg").write_bytes(IMAGE)
    assert read_url(f"file://{tmp_path}/ü%201.jpg") == IMAGE
    with pytest.raises(FileNotFoundError, match=r"file:///nowhere/1\.jpg: FileNotFoundError$"):
        read_url("file:///nowhere/1.jpg")
    fsspec.filesystem("memory").pipe("/bucket/1.jpg", IMAGE)
    assert read_url("memory://bucket/1.jpg") == IMAGE
    with pytest.raises(OSError, match=r"memory://bucket/2\.jpg: FileNotFoundError$"):
        read_url("memory://bucket/2.jpg")


def test_schemes_are_told_from_local_paths() -> None:
    local = ["a.jpg", "a:b.jpg", "/x/y://z", "12:30.jpg", "C:\\x.jpg"]
    assert [scheme_of(path) for path in local] == [None] * len(local)
    remote_ones = ["S3://b/x", "pipe:cat x", "Pipe:x", "simplecache::s3://b/x", "hf://x"]
    assert [scheme_of(url) for url in remote_ones] == ["s3", "pipe", "pipe", "simplecache::s3", "hf"]


@pytest.mark.parametrize("scheme", ["pipe", "simplecache::s3", "zip", "memory", "ssh", ""])
def test_schemes_that_are_not_read_are_refused(scheme: str) -> None:
    with pytest.raises(ConfigError, match="is not read; known are s3://"):
        check_scheme(scheme)


def test_a_scheme_whose_package_is_missing_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match=r"s3:// cannot be read: Install s3fs(.|\n)*pip install s3fs"):
        check_scheme("s3")


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    assert redact("https://me:pw@host:80/a/b.jpg?X-Amz-Signature=ab&v=1&apikey=c#t") == (
        "https://host:80/a/b.jpg?X-Amz-Signature=...&v=...&apikey=..."
    )
    assert redact("s3://bucket/a b.jpg") == "s3://bucket/a b.jpg"
    assert redact("https://h/\x1b[2J") == "https://h/\\x1b[2J"
    assert redact("https://h/a.jpg?sesame&pwd=sesame;x=sesame&b") == "https://h/a.jpg?...&pwd=...&..."
    assert redact("https://me:sesame@[::1/a.jpg") == "https://..."
    assert redact("https://h/a.jpg?\udce9=\udce9") == "https://h/a.jpg?\\xe9=..."


class StalledStore(fsspec.asyn.AsyncFileSystem):
    """A store that answers for the key ``quick`` alone."""

    protocol = "stalled"

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **rest: object) -> bytes:
        if not path.endswith("quick"):
            await asyncio.sleep(60)
        return IMAGE[start:end]


def test_stores_that_stall_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("stalled", StalledStore, clobber=True)
    monkeypatch.setattr(remote, "SECONDS", 0.05)
    monkeypatch.setattr(remote, "TRIES", 1)
    assert read_url("stalled://bucket/quick") == IMAGE
    with pytest.raises(OSError, match=r"stalled://bucket/slow: \w*Timeout"):
        read_url("stalled://bucket/slow")


def test_ranges_of_files_and_stores_are_read_through_the_same_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "PIECE", 1000)
    (tmp_path / "ü 1.tar").write_bytes(IMAGE)
    fsspec.filesystem("memory").pipe("/bucket/1.tar", IMAGE)
    fsspec.register_implementation("stalled", StalledStore, clobber=True)
    for url in (f"file://{tmp_path}/ü%201.tar", "memory://bucket/1.tar", "stalled://bucket/quick"):
        for total in (None, len(IMAGE)):
            assert read_range(url, 100, 2345, total=total) == IMAGE[100:2445]
            assert read_range(url, 1000, len(IMAGE) - 1000, total=total) == IMAGE[1000:]
        assert b"".join(read_pieces(url, len(IMAGE))) == IMAGE
        with pytest.raises(OSError, match=r"1 bytes came of the 2 from 255999 on.* \(4 tries\)") as caught:
            read_range(url, len(IMAGE) - 1, 2)
        assert caught.value.errno == errno.EIO
        for wrong in (-1, 1):
            with pytest.raises(OSError, match=r"bytes came of the .* \(4 tries\)") as caught:
                list(read_pieces(url, len(IMAGE) + wrong))
            assert caught.value.errno == errno.ESTALE


def test_a_range_of_what_is_missing_or_forbidden_is_given_up_at_once(tmp_path: Path) -> None:
    tried: list[int] = []
    for url in ("file:///nowhere/1.tar", "memory://bucket/2.tar"):
        with pytest.raises(FileNotFoundError if url[0] == "f" else OSError, match=r"\.tar: FileNotFoundError$"):
            read_range(url, 0, 10, on_retry=lambda: tried.append(1))
    with pytest.raises(IsADirectoryError, match=r": IsADirectoryError$"):
        read_range(f"file://{tmp_path}", 0, 10, on_retry=lambda: tried.append(1))
    assert tried == []


def test_stores_that_stall_in_a_range_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("stalled", StalledStore, clobber=True)
    monkeypatch.setattr(remote, "SECONDS", 0.05)
    monkeypatch.setattr(remote, "TRIES", 1)
    with pytest.raises(OSError, match=r"stalled://bucket/slow: \w*Timeout"):
        read_range("stalled://bucket/slow", 0, 10)


def test_a_file_that_is_cut_off_goes_on_with_the_piece_where_it_was(
    faulty_server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 100_000)
    (faulty_server.folder / "a.tar").write_bytes(IMAGE)
    faulty_server.add_faults("a.tar", ["503", "cut", "cut", "short", "whole"])
    retries: list[int] = []
    pieces = read_pieces(faulty_server.url("a.tar"), len(IMAGE), on_retry=lambda: retries.append(1))
    assert b"".join(pieces) == IMAGE
    begins = [int(request.range.removeprefix("bytes=").partition("-")[0]) for request in faulty_server.requests]
    assert begins == [0, 0, 100_000, 100_000, 100_000]
    assert len(retries) == 4


def test_a_file_of_another_size_is_noticed_before_its_first_byte(faulty_server: FaultyServer) -> None:
    (faulty_server.folder / "a.tar").write_bytes(IMAGE)
    for size in (len(IMAGE) - 1, len(IMAGE) + 1):
        pieces = read_pieces(faulty_server.url("a.tar", user="me:sesame", query="k=sesame"), size)
        with pytest.raises(OSError, match=f"a file of 256000 bytes instead of {size}") as caught:
            next(pieces)
        assert caught.value.errno == errno.ESTALE and "sesame" not in str(caught.value)
