"""Where a set is written: a local folder, or object storage through fsspec.

A file is there whole or not at all in a folder, and in stores whose uploads are so.
"""

import hashlib
import itertools
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mpp.disk import fsync_path, lock_file
from mpp.errors import ConfigError, DiskError
from mpp.shards.shardset import RECORDS
from mpp.sources.files import printable
from mpp.sources.remote import redact

LOCK = f"{RECORDS}/lock"
TEMPORARY = f"{RECORDS}/tmp"
FILES_AT_A_TIME = 256


class BusyError(ConfigError):
    """A folder that another process is writing to."""


class File(NamedTuple):
    """A file's size in bytes and when it was written, seconds since 1970, or None where nobody knows."""

    size: int
    written: float | None


class Output(Protocol):
    """A place for the files of a set, by their names relative to its root.

    ``work`` is the local folder, shared by all workers, of the listing, the lock and the files being built.
    """

    @property
    def work(self) -> Path: ...

    def absolute(self) -> "Output":
        """Return the same place, named so that a process with another current folder finds it."""
        ...

    def place(self, name: str) -> Path | str:
        """Return where the file ``name`` is, for messages."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Make ``data`` the file ``name``."""
        ...

    def move_in(self, file: Path, name: str) -> None:
        """Make the local file, which was built under ``work``, the file ``name``; it is gone then."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raise ``FileNotFoundError`` where there is none."""
        ...

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Yield the bytes of many files."""
        ...

    def files(self, folder: str) -> dict[str, File]:
        """Return each file that lies directly in ``folder``, by its name there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...


@dataclass(frozen=True)
class LocalOutput:
    """A folder of this machine, or one that all workers share."""

    root: Path

    @property
    def work(self) -> Path:
        """Return the folder itself."""
        return self.root

    def absolute(self) -> "LocalOutput":
        """Return it by its absolute path."""
        return LocalOutput(self.root.absolute())

    def place(self, name: str) -> Path:
        """Return the path."""
        return self.root / name

    def put(self, name: str, data: bytes) -> None:
        """Write under a temporary name, sync, rename; a file that is so already is left alone."""
        path = self.root / name
        if path.exists() and path.read_bytes() == data:
            return
        with temporary_file(self.root, name) as temporary:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.move_in(temporary, name)

    def move_in(self, file: Path, name: str) -> None:
        """Rename a file that has been synced."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, path)
        fsync_path(path.parent)

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.root / name).read_bytes()

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read one after the other."""
        for name in names:
            with open(f"{self.root}/{name}", "rb") as file:  # half the time of a Path, and there may be 100,000
                yield file.read()

    def files(self, folder: str) -> dict[str, File]:
        """Look at a folder; one that is not there is empty."""
        try:
            with os.scandir(self.root / folder) as entries:
                found = list(entries)
        except FileNotFoundError:
            return {}
        files = {}
        for entry in found:
            with suppress(FileNotFoundError):  # it was there a moment ago
                if entry.is_file():
                    status = entry.stat()
                    files[entry.name] = File(status.st_size, status.st_mtime)
        return files

    def remove(self, name: str) -> None:
        """Remove it."""
        (self.root / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteOutput:
    """A place that fsspec knows (s3://, gs://, hf://, ...), whose objects are written by one request each.

    Every method raises ``DiskError`` where the store cannot be used.
    """

    url: str
    work: Path

    @cached_property
    def _store(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            fix = "install what it names, or name another OUT"
            raise ConfigError(f"OUT {self.place('')}: {error}", fix=fix) from None
        return system, path.rstrip("/")

    @contextmanager
    def _asked(self) -> Iterator[tuple[Any, str]]:
        """Give the store and the path in it; every kind of storage has errors of its own."""
        try:
            yield self._store
        except (FileNotFoundError, ConfigError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace(self.url, self.place(""))
            raise DiskError(f"OUT {self.place('')}: {reason}", fix="the same command continues") from None

    def absolute(self) -> "RemoteOutput":
        """Return it with the absolute path of its local files."""
        return RemoteOutput(self.url, self.work.absolute())

    def place(self, name: str) -> str:
        """Return the URL without secrets."""
        return redact(f"{self.url}/{name}".rstrip("/"))

    def put(self, name: str, data: bytes) -> None:
        """Upload bytes."""
        with self._asked() as (system, root):
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.pipe_file(f"{root}/{name}", data)

    def move_in(self, file: Path, name: str) -> None:
        """Upload a file and remove it here."""
        with self._asked() as (system, root):
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), f"{root}/{name}")
        file.unlink()

    def read(self, name: str) -> bytes:
        """Download a file."""
        with self._asked() as (system, root):
            return bytes(system.cat_file(f"{root}/{name}"))

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Download a few hundred at a time, side by side where the store can."""
        rest = iter(names)
        while some := list(itertools.islice(rest, FILES_AT_A_TIME)):
            with self._asked() as (system, root):
                paths = [f"{root}/{name}" for name in some]
                found = system.cat(paths)
            yield from (found[path] for path in paths)

    def files(self, folder: str) -> dict[str, File]:
        """List a folder as it is now; one that is not there is empty."""
        with self._asked() as (system, root):
            system.invalidate_cache()
            try:
                found = system.ls(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        files = [entry for entry in found if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: File(entry["size"], _time(entry)) for entry in files}

    def remove(self, name: str) -> None:
        """Delete the object."""
        with self._asked() as (system, root):
            system.rm_file(f"{root}/{name}")


def _time(entry: dict[str, Any]) -> float | None:
    """Return when an object was written; each kind of storage has its own word for that."""
    found = next((entry[word] for word in ("LastModified", "mtime", "updated", "created") if word in entry), None)
    return found.timestamp() if isinstance(found, datetime) else found if isinstance(found, float) else None


def is_remote(out: str) -> bool:
    """Say whether ``out`` is a URL and no path."""
    return "://" in out


def open_output(out: str, work: Path | None) -> LocalOutput | RemoteOutput:
    """Return the place named ``out``; a remote one has its local files in ``work``, by default ./NAME-HASH.work.

    Raises ``ConfigError`` for ``work`` beside a folder, which is its own.
    """
    try:
        out.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"OUT {printable(out)}: the name is no UTF-8", fix="name another OUT") from None
    if is_remote(out):
        url = out.rstrip("/")
        name, digest = url.rpartition("/")[2], hashlib.sha256(url.encode()).hexdigest()
        return RemoteOutput(url, work or Path(f"{name}-{digest[:8]}.work"))
    if work is not None:
        raise ConfigError(f"work={work}: OUT {out} is a folder and keeps its own", fix="leave work= away")
    return LocalOutput(Path(out))


@contextmanager
def temporary_file(work: Path, name: str) -> Iterator[Path]:
    """Give the path at which this process builds ``name``; nothing is left there, unless by a kill."""
    folder = work / TEMPORARY
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(name).name}.{socket.gethostname()}.{os.getpid()}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def locked(work: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder ``work`` alone, or with others that write shards; raise ``BusyError`` where that cannot be."""
    (work / RECORDS).mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(work / LOCK, shared=shared)
    except BlockingIOError:
        raise BusyError(f"another mpp-shard is writing to {work}", fix="wait for it, or stop it") from None
    with lock:
        if not shared:
            shutil.rmtree(work / TEMPORARY, ignore_errors=True)  # what killed processes left
        yield
