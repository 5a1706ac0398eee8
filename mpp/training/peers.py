"""The processes of a run hear of each other: who was lost, who was asked to stop, who waits for data.

Every process holds one TCP connection to process 0. The kernel closes the connections of a process that dies, also by
kill -9, so that the others learn of it at once and without its help. One line of JSON is one message:

    hello      who I am (and the word that only processes of this run know)
    beat       I live; and whether I am busy with something else than a step: data, a save
    stop       I was asked to stop
    bye        I end: empty where all is well, else why
    lost       process 0 tells whom it has lost
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mpp.errors import HangError
from mpp.training.stops import StopSignals

_BEAT = 0.5  # seconds between signs of life
_FRESH = 1.5  # seconds after which a sign of life is none any more
_GRACE = 5.0  # seconds that the main thread has to find out for itself and end in good order
_CONNECT = 60.0  # seconds to reach process 0
CONTINUE = "the same command continues from the newest checkpoint"


class Peers:
    """This process's lines to the others; with one process there are none and nothing happens.

    ``tell(values)`` makes the list of process 0 that of all. All processes open their lines together.
    """

    def __init__(self, rank: int, world: int, stops: StopSignals, tell: Callable[[list[Any]], object]) -> None:
        self.rank, self.world, self._stops, self._tell = rank, world, stops, tell
        self.busy = False  # with something else than a step
        self.lost: str | None = None
        self.last_words: Callable[[str], None] = lambda words: None  # before this process is ended from here
        self._others_busy_until = 0.0
        self._lines: dict[socket.socket, _Line] = {}
        self._selector, self._lock = selectors.DefaultSelector(), threading.Lock()
        self._closing = threading.Event()
        self._told_stop = False
        if self.world > 1:
            self._open()
            self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
            self._thread.start()

    def others_busy(self) -> bool:
        """Return whether another process says that it is busy with data or a save, and lives."""
        return time.monotonic() < self._others_busy_until

    def silent(self, seconds: float) -> list[str]:
        """Return the names of those that give no sign of life for so long; only process 0 knows of all."""
        now = time.monotonic()
        return [line.name for line in list(self._lines.values()) if now - line.heard > seconds and not line.ended]

    def why_lost(self) -> str | None:
        """Return whom this process has lost, after waiting a moment for the news to come."""
        deadline = time.monotonic() + _GRACE / 2
        while self.world > 1 and self.lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.lost

    def close(self, why: str = "") -> None:
        """Take leave of the others: say ``why`` where something went wrong."""
        if self.world == 1 or self._closing.is_set():
            return
        self._closing.set()
        self._send({"bye": why})
        self._thread.join(_GRACE)
        for connection in list(self._lines):
            connection.close()
        self._selector.close()

    def exit_now(self, why: str) -> None:
        """End this process, whose main thread is stuck, and tell the others."""
        sys.stderr.flush()
        self._send({"lost": why})
        self.last_words("failed")
        os._exit(HangError.exit_code)

    def _open(self) -> None:
        word: list[Any] = [secrets.token_hex(8), 0]
        if self.rank == 0:
            listener = socket.create_server(("", 0), backlog=self.world)
            word[1] = listener.getsockname()[1]
        self._tell(word)
        own = {"hello": self.rank, "word": word[0], "host": socket.gethostname(), "pid": os.getpid()}
        try:
            if self.rank == 0:
                listener.settimeout(_CONNECT)
                while len(self._lines) < self.world - 1:
                    self._greet(listener.accept()[0], own, word[0])
                listener.close()
            else:
                address = (os.environ.get("MASTER_ADDR", "localhost"), word[1])
                self._greet(socket.create_connection(address, timeout=_CONNECT), own, word[0])
        except OSError as error:
            raise HangError(
                f"process {self.rank} cannot reach the others: {error}", fix="let TCP through between the nodes"
            ) from error

    def _greet(self, connection: socket.socket, own: dict[str, Any], word: str) -> None:
        connection.settimeout(_CONNECT)
        connection.sendall(_encoded(own))
        hello = _hello(connection)
        if hello.get("word") != word:  # someone else who came by
            return connection.close()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.settimeout(_BEAT)
        name = f"process {hello['hello']} (host {hello['host']}, pid {hello['pid']})"
        self._lines[connection] = _Line(name)
        self._selector.register(connection, selectors.EVENT_READ)

    def _watch(self) -> None:
        beat = 0.0
        while not self._closing.is_set():
            for key, _ in self._selector.select(_BEAT / 2):
                assert isinstance(key.fileobj, socket.socket)
                self._receive(key.fileobj)
            if self._stops.received is not None and not self._told_stop:
                self._told_stop = True
                self._send({"stop": self._stops.received})
            if time.monotonic() >= beat:
                beat = time.monotonic() + _BEAT
                self._send({"beat": self.busy or (self.rank == 0 and self.others_busy())})
            if self.lost is not None:
                self._end()

    def _receive(self, connection: socket.socket) -> None:
        line = self._lines[connection]
        try:
            data = connection.recv(65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            if not line.ended and not self._closing.is_set():
                self.lost = self.lost or f"{line.name} is lost"
            line.ended = True
            return
        line.heard = time.monotonic()
        *messages, line.rest = (line.rest + data).split(b"\n")
        for message in messages:
            self._understand(line, json.loads(message))

    def _understand(self, line: "_Line", message: dict[str, Any]) -> None:
        if message.get("beat"):
            self._others_busy_until = time.monotonic() + _FRESH
        if "stop" in message:
            self._stops.ask(message["stop"])
        if "bye" in message:
            line.ended = True
            if message["bye"]:
                self.lost = self.lost or f"{line.name} ended: {message['bye']}"
        if "lost" in message:
            self.lost = self.lost or message["lost"]

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            for connection, line in list(self._lines.items()):
                try:
                    if not line.ended:
                        connection.sendall(_encoded(message))
                except OSError:
                    continue  # receiving finds out what is the matter

    def _end(self) -> None:
        """Tell the others of the loss, and end this process where its main thread does not come to that by itself."""
        self._send({"lost": self.lost})
        if self._closing.wait(_GRACE):
            return
        print(f"error: {HangError(f'{self.lost}; process {self.rank} cannot go on', fix=CONTINUE)}", file=sys.stderr)
        self.exit_now(self.lost or "")


class _Line:
    """What is known of the process at the other end."""

    def __init__(self, name: str) -> None:
        self.name, self.heard, self.rest, self.ended = name, time.monotonic(), b"", False


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _hello(connection: socket.socket) -> dict[str, Any]:
    """Read the first line and nothing behind it."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 1000:
        byte = connection.recv(1)
        if not byte:
            break
        text += byte
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}
