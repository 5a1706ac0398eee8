"""A loopback web server over a folder, which misbehaves as told and notes what it was asked for.

    with FaultyServer(folder, {"train/00000.tar": ["503", "503", "cut"], "*.members": ["404"]}) as server:
        read(server.url("train/00000.tar"))
        assert server.asked("train/00000.tar") == 4

Faults are by path, or by a pattern for the paths that fit together: each request takes the next fault of the first
pattern that fits and has one left; when they are used up, the server is well. ``ALWAYS("404")`` never is. Faults:

    "503", "404" ...   this status, with a page of text
    "cut"              half the body, then the connection ends
    "short", "long"    a Content-Length that is a byte less, or more, than what was asked for
    "less", "more"     a byte less, or more, without any Content-Length
    "total"            a file that claims one byte more than it has
    "other"            the bytes before those asked for, honestly labelled
    "flip"             one bit of the first byte is wrong
    "whole"            ``Range`` is ignored: status 200 and the whole file
    "html"             status 200 and a login page, which does not begin as they do
    "page"             a login page that is said to be a tar
    "stall"            the headers and ten bytes, then nothing until the server ends
    "slow"             half a second passes first
    "meet"             no answer before the ``meeting`` is complete: that many requests at once, or else status 500
"""

import itertools
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

ALWAYS = itertools.repeat
PAGE = b"<!DOCTYPE html><html>please log in</html>"


class Request(NamedTuple):
    """One request: path below the folder, value of its Range header, and the fault it met, "" for none."""

    path: str
    range: str
    fault: str


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of ``folder`` on 127.0.0.1 from a thread of this process, from ``with`` to its end."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, faults: Mapping[str, Iterable[str]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[Request] = []
        self.connections = 0
        self.ended = threading.Event()
        self.meeting = threading.Barrier(2)
        self._lock = threading.Lock()
        self._faults: list[tuple[str, Iterator[str]]] = []
        for pattern, kinds in (faults or {}).items():
            self.add_faults(pattern, kinds)

    def add_faults(self, pattern: str, kinds: Iterable[str]) -> None:
        """Let the next requests for the paths that fit ``pattern`` (fnmatch) meet these faults, one each."""
        with self._lock:
            self._faults.append((pattern, iter(kinds)))

    def url(self, path: str = "", *, user: str = "", query: str = "") -> str:
        """Return the URL of a path below the folder; ``user`` is "name:password"."""
        user, query = (user and f"{user}@"), (query and f"?{query}")
        return f"http://{user}127.0.0.1:{self.server_port}/{quote(path)}{query}"

    def asked(self, path: str = "*") -> int:
        """Return the number of requests so far for the paths that fit."""
        return sum(fnmatch(request.path, path) for request in list(self.requests))

    def note(self, path: str, asked_range: str) -> str:
        """Write down a request and return the fault it is to meet."""
        with self._lock:
            faults = (next(kinds, None) for pattern, kinds in self._faults if fnmatch(path, pattern))
            fault = next((kind for kind in faults if kind is not None), "")
            self.requests.append(Request(path, asked_range, fault))
            return fault

    def __enter__(self) -> "FaultyServer":
        self._thread = threading.Thread(target=partial(self.serve_forever, poll_interval=0.01))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, FaultyServer)
        self.server.connections += 1

    def do_GET(self) -> None:
        assert isinstance(self.server, FaultyServer)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        fault = self.server.note(path, self.headers.get("Range", ""))
        if fault == "slow":
            time.sleep(0.5)
        if fault == "meet":
            try:
                self.server.meeting.wait(10)
            except threading.BrokenBarrierError:
                fault = "500"
        file = self.server.folder / path
        if fault.isdigit():
            self._answer(int(fault), b"there is nothing to see here")
        elif fault in ("html", "page"):
            said = {"html": "text/html; charset=utf-8", "page": "application/x-tar"}
            self._answer(200, PAGE if fault == "page" else b"please log in", {"Content-Type": said[fault]})
        elif not file.is_file():
            self._answer(404, b"there is no such file")
        else:
            self._send_file(file.read_bytes(), fault)

    def _send_file(self, data: bytes, fault: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        total = len(data) + (fault == "total")
        if found is None or fault == "whole":
            self._answer(200, data, fault=fault)
        elif int(found[1]) >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
        else:
            begin = int(found[1]) - (fault == "other")
            body = data[begin : int(found[2] or len(data)) + (fault != "other")]
            self._answer(206, body, {"Content-Range": f"bytes {begin}-{begin + len(body) - 1}/{total}"}, fault)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        length = len(body) + {"short": -1, "long": 1}.get(fault, 0)
        self.close_connection = fault in ("cut", "stall", "long", "less", "more")
        said = {} if fault in ("less", "more") else {"Content-Length": str(length)}
        for name, value in {"Accept-Ranges": "bytes", **said, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        ends = {"cut": len(body) // 2, "stall": 10, "less": len(body) - 1}
        self.wfile.write(body[: ends.get(fault, length)] + b"!" * (fault == "more"))
        self.wfile.flush()
        if fault == "stall":
            assert isinstance(self.server, FaultyServer)
            self.server.ended.wait()
        if self.close_connection:
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass
