"""Write one shard and commit it atomically.

The tar is written under a temporary name, fsynced and renamed; the table of members follows; the commit record
comes last, and its presence is the only meaning of "done".
"""

import errno
import hashlib
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpp.errors import DiskError
from mpp.shards.corpora import Reader
from mpp.shards.disk import fsync_path
from mpp.shards.files import printable
from mpp.shards.images import Accepted, ImagePolicy, Refused, accept
from mpp.shards.layout import FORMAT_VERSION, Int64s, ShardPlan
from mpp.shards.shardset import MEMBER, RECORDS

TEMPORARY = f"{RECORDS}/tmp"
BLOCK, RECORD = 512, 10_240  # tar's units, bytes
JSON_LIMIT = 512  # bytes of a sample's .json member
Members = dict[str, bytes]


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to write one shard; ``labels`` are those of ``plan.items``, if there are any."""

    root: Path
    plan: ShardPlan
    labels: Int64s | None
    reader: Reader
    policy: ImagePolicy
    layout_hash: str
    options_hash: str


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Write the shard of ``task`` and return its commit record; raise ``DiskError`` where there is no room.

    A shard of which every image is refused has a record and no tar.
    """
    shard = _OpenShard()
    final = task.root / task.plan.name
    with disk_errors(final):
        temporary = temporary_file(task.root, task.plan.name)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                for position in range(len(task.plan.items)):
                    shard.add(file, task, position)
                shard.close(file)
            if shard.keys:
                os.replace(temporary, final)
                fsync_path(final.parent)
        finally:
            temporary.unlink(missing_ok=True)
        sidecar = f"{RECORDS}/{task.plan.name.removesuffix('.tar')}"
        write_atomic(task.root, f"{sidecar}.members", np.array(shard.members, dtype=MEMBER).tobytes())
        record = shard.record(task)
        write_atomic(task.root, f"{sidecar}.json", json.dumps(record, indent=1).encode())
    return record


class _OpenShard:
    """The state of a shard while it is written."""

    def __init__(self) -> None:
        self.offset, self.digest = 0, hashlib.sha256()
        self.members: list[tuple[int, int, int]] = []
        self.keys: list[str] = []
        self.extensions: tuple[str, ...] = ()
        self.refusals: list[tuple[str, str, str, str]] = []
        self.notes: Counter[str] = Counter()

    def add(self, file: BinaryIO, task: ShardTask, position: int) -> None:
        """Append the sample at ``position`` of the plan, or note why it is refused."""
        item = int(task.plan.items[position])
        try:
            sample = task.reader.read(task.plan.split, item)
        except OSError as error:
            where = str(getattr(error, "filename", None) or f"{task.plan.split}[{item}]")
            reason = "too_large" if error.errno == errno.EFBIG else "unreadable"
            self.refusals.append((printable(where), reason, error.strerror or str(error), ""))
            return
        digest = hashlib.sha256(sample.image).hexdigest()
        outcome = accept(sample.image, task.policy)
        if isinstance(outcome, Refused):
            self.refusals.append((sample.source, outcome.reason, printable(outcome.detail), digest))
            return
        key = f"{task.plan.first + position:09d}"
        label = None if task.labels is None else int(task.labels[position])
        members = sample_members(key, label, sample.source, outcome, digest, task.policy.format)
        for extension, payload in members.items():
            header = tar_header(f"{key}.{extension}", len(payload))
            self.members.append((self.offset + BLOCK, len(payload), zlib.crc32(payload)))
            self._write(file, header + payload + bytes(-len(payload) % BLOCK))
        self.keys.append(key)
        self.extensions = tuple(members)
        self.notes.update(outcome.notes or ("passed",))

    def close(self, file: BinaryIO) -> None:
        """Write the end of the tar and bring it to the disk."""
        end = self.offset + 2 * BLOCK
        self._write(file, bytes(2 * BLOCK + -end % RECORD))
        file.flush()
        os.fsync(file.fileno())

    def record(self, task: ShardTask) -> dict[str, Any]:
        """Return the commit record."""
        return {
            "version": FORMAT_VERSION,
            "name": task.plan.name,
            "layout_hash": task.layout_hash,
            "options_hash": task.options_hash,
            "listed": len(task.plan.items),
            "samples": len(self.keys),
            "refused": len(self.refusals),
            "bytes": self.offset if self.keys else 0,
            "sha256": self.digest.hexdigest() if self.keys else "",
            "members": list(self.extensions),
            "first_key": self.keys[0] if self.keys else None,
            "last_key": self.keys[-1] if self.keys else None,
            "notes": dict(sorted(self.notes.items())),
            "refusals": self.refusals,
        }

    def _write(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        self.digest.update(data)
        self.offset += len(data)


def sample_members(key: str, label: int | None, source: str, image: Accepted, digest: str, extension: str) -> Members:
    """Return the members of a sample by extension, in the order of the tar."""
    fields: dict[str, Any] = {"key": key, "source": source, "sha256": digest}
    fields |= {"width": image.size[0], "height": image.size[1]}
    fields |= {"original_width": image.original_size[0], "original_height": image.original_size[1]}
    fields["transform"] = ",".join(image.notes)
    members = {} if label is None else {"cls": str(label).encode()}
    return members | {extension: image.image, "json": _short_json(fields)}


def _short_json(fields: dict[str, Any]) -> bytes:
    """Encode ``fields`` below ``JSON_LIMIT`` bytes, keeping the end of a long source."""
    encoded = json.dumps(fields, ensure_ascii=False).encode()
    while len(encoded) >= JSON_LIMIT:
        excess = len(encoded) - JSON_LIMIT
        source = str(fields["source"]).removeprefix("...")
        fields["source"] = "..." + source[max(1, excess // 4) :]
        encoded = json.dumps(fields, ensure_ascii=False).encode()
    return encoded


def tar_header(name: str, size: int) -> bytes:
    """Return the USTAR header of a plain read-only file without owner or time."""
    fields = (name.encode("ascii"), b"0000444\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"0" * 11 + b"\0")
    tail = (b"0", b"", b"ustar\0", b"00", b"", b"", b"", b"", b"")
    layout = "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x"
    checksum = sum(struct.pack(layout, *fields, b" " * 8, *tail))
    return struct.pack(layout, *fields, b"%06o\0 " % checksum, *tail)


def write_atomic(root: Path, name: str, data: bytes) -> None:
    """Write the file ``name`` of the set at ``root`` so that it is there as a whole or not at all."""
    path, temporary = root / name, temporary_file(root, name)
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def temporary_file(root: Path, name: str) -> Path:
    """Return where this process builds ``name``: in one folder, which the next run empties after a kill."""
    folder = root / TEMPORARY
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{Path(name).name}.{os.getpid()}"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one ``DiskError`` that names the path and the room left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        statistics = os.statvfs(next(folder for folder in path.parents if folder.exists()))
        room = statistics.f_bavail * statistics.f_frsize
        reason = f"{path}: cannot write, {error.strerror} ({room:,} bytes free)"
        raise DiskError(reason, fix="make room or choose another OUT; the same command then continues") from None
