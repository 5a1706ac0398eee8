"""Where a set is written: a local folder, or object storage through fsspec. A file is there whole or not at all."""

import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mpp.disk import fsync_path
from mpp.errors import ConfigError
from mpp.shards.shardset import RECORDS

TEMPORARY = f"{RECORDS}/tmp"


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
                found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return {}
        return {name: File(status.st_size, status.st_mtime) for name, status in found}

    def remove(self, name: str) -> None:
        """Remove it."""
        (self.root / name).unlink()


@dataclass(frozen=True)
class RemoteOutput:
    """A place that fsspec knows (s3://, gs://, hf://, ...); an object is written by one request, or not at all."""

    url: str
    work: Path

    @cached_property
    def _store(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"OUT {self.url}: {error}", fix="install what it names, or name another OUT") from None
        return system, path.rstrip("/")

    def absolute(self) -> "RemoteOutput":
        """Return it with the absolute path of its local files."""
        return RemoteOutput(self.url, self.work.absolute())

    def place(self, name: str) -> str:
        """Return the URL."""
        return f"{self.url}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Upload bytes."""
        system, root = self._store
        system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", data)

    def move_in(self, file: Path, name: str) -> None:
        """Upload a file and remove it here."""
        system, root = self._store
        system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), f"{root}/{name}")
        file.unlink()

    def read(self, name: str) -> bytes:
        """Download a file."""
        system, root = self._store
        return bytes(system.cat_file(f"{root}/{name}"))

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Download one after the other."""
        return map(self.read, names)

    def files(self, folder: str) -> dict[str, File]:
        """List a folder as it is now; one that is not there is empty."""
        system, root = self._store
        system.invalidate_cache()
        try:
            found = system.ls(f"{root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        files = [entry for entry in found if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: File(entry["size"], _time(entry)) for entry in files}

    def remove(self, name: str) -> None:
        """Delete the object."""
        system, root = self._store
        system.rm_file(f"{root}/{name}")


def _time(entry: dict[str, Any]) -> float | None:
    """Return when an object was written; each kind of storage has its own word for that."""
    found = next((entry[word] for word in ("LastModified", "mtime", "updated", "created") if word in entry), None)
    return found.timestamp() if isinstance(found, datetime) else found if isinstance(found, float) else None


def is_remote(out: str) -> bool:
    """Say whether ``out`` is a URL and no path."""
    return "://" in out


def open_output(out: str, work: Path | None) -> LocalOutput | RemoteOutput:
    """Return the place named ``out``; a remote one has its local files in ``work``, by default ./NAME.work."""
    if not is_remote(out):
        return LocalOutput(Path(out))
    return RemoteOutput(out.rstrip("/"), work or Path(f"{out.rstrip('/').rpartition('/')[2]}.work"))


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


def clear_temporary(work: Path) -> None:
    """Remove what killed processes left."""
    shutil.rmtree(work / TEMPORARY, ignore_errors=True)
