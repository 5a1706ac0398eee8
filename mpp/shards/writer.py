"""Write one shard and commit it atomically.

The tar is written under a temporary name, fsynced and moved in; its index and its table of members follow; the commit
record comes last, and its presence is the only meaning of "done".
"""

import errno
import hashlib
import json
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpp.disk import disk_errors
from mpp.shards.duplicates import Copies, read_copies
from mpp.shards.images import Accepted, ImagePolicy, Refused, accept, prepare_worker, refused_by_bytes
from mpp.shards.layout import FORMAT_VERSION, ShardPlan, plan_shard, shard_name
from mpp.shards.listing import Listing, Row, open_listing
from mpp.shards.outputs import Output, locked, temporary_file
from mpp.shards.shardset import MEMBER, RECORDS, sidecar
from mpp.sources.entries import UNKNOWN
from mpp.sources.files import printable

LAYOUT = f"{RECORDS}/layout.json"
FAILED = f"{RECORDS}/failed"
REASONS = {errno.EFBIG: "too_large", errno.ESTALE: "changed"}  # of sources that cannot be read
BLOCK, RECORD = 512, 10_240  # tar's units, bytes
BUFFER = 2**18  # bytes written at a time: takes half the time of writing each sample
# A header is name, MODE_OWNER, size, TIME, checksum, TYPE_MAGIC; in the checksum its own eight bytes count as blanks.
MODE_OWNER, TIME = b"0000444\0" + 2 * b"0000000\0", b"\0" + 11 * b"0" + b"\0"
TYPE_MAGIC = (b"\0 0" + bytes(100) + b"ustar\0" + b"00").ljust(BLOCK - 154, b"\0")
SUM_OF_THE_REST = sum(MODE_OWNER + TIME + TYPE_MAGIC[2:]) + 8 * ord(" ")
JSON_LIMIT = 512  # bytes of a sample's .json member
JSON = json.JSONEncoder(ensure_ascii=False)
Layout = dict[str, Any]
Members = dict[str, bytes]
Kind = tuple[tuple[str, ...], str, str, int | None]  # of a sample: notes, format, mode, label


@dataclass(frozen=True)
class ShardTask:
    """The shard to write: number ``number`` of ``split`` in the layout of ``output``."""

    output: Output
    split: str
    number: int


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Write the shard of ``task`` and return its commit record without the refusals.

    A shard of which every image is refused has a record and no tar. An error is also noted in the folder ``FAILED``,
    for those who ask for the status. Raises ``DiskError`` where there is no room.
    """
    output = task.output
    layout = read_layout(output.work)
    record = _written(output, shard_name(task.split, task.number))
    if record is not None:  # by an earlier attempt at a chunk of shards
        return record
    plan = plan_shard(task.split, layout["bounds"], task.number, layout["options"]["seed"])
    copies = read_copies(output.work, task.split) if layout["options"]["dedupe"] == "exact" else None
    policy, listing = image_policy(layout), open_listing(output.work)
    if multiprocessing.parent_process() is not None:  # a process of a pool, which does nothing else
        _prepare_process(policy, listing, task.split)
    shard = _OpenShard(plan, listing, policy, copies)
    with (
        locked(output.work, shared=True),
        _noted(output.work, plan.name),
        disk_errors(output.place(plan.name)),
        temporary_file(output.work, plan.name) as temporary,
    ):
        with open(temporary, "wb", BUFFER) as file:
            shard.write(file)
        return _commit(output, shard, temporary, layout)


@lru_cache(maxsize=1)
def _prepare_process(policy: ImagePolicy, listing: Listing, split: str) -> None:
    """Open what images are read from, so that its memory does not count, and bound the memory of decoders."""
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the usual one reserves 1 GiB at its first use
    with suppress(OSError):
        listing.read(split, listing.rows(split, np.zeros(1, np.int64))[0])
    prepare_worker(policy)


@contextmanager
def _noted(work: Path, name: str) -> Iterator[None]:
    """Keep the message of an error in a file, until the shard ``name`` is written."""
    note = work / FAILED / f"{Path(name).stem}.txt"
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{type(error).__name__}: {error}\n")
        raise
    note.unlink(missing_ok=True)


def read_layout(work: Path) -> Layout:
    """Return the layout kept in the folder ``work``; raise ``FileNotFoundError`` where there is none."""
    return _read_layout(work, os.stat(work / LAYOUT).st_mtime_ns)


@lru_cache(maxsize=1)
def _read_layout(work: Path, changed: int) -> Layout:
    layout: Layout = json.loads((work / LAYOUT).read_bytes())
    return layout


def image_policy(layout: Layout) -> ImagePolicy:
    """Return what a layout says to do with each image."""
    options = layout["options"]
    names = ("resize", "quality", "check", "animated", "max_pixels", "min_side", "max_aspect")
    settings: dict[str, Any] = {name: options[name] for name in names}
    settings |= {name: tuple(options[name]) for name in ("background", "formats")}
    return ImagePolicy(format=layout["format"], **settings)


def _written(output: Output, name: str) -> dict[str, Any] | None:
    """Return the record of a shard that is done, without the refusals."""
    try:
        return _brief(json.loads(output.read(sidecar(name, "json"))))
    except FileNotFoundError:
        return None


def _brief(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "refusals"}


def _commit(output: Output, shard: "_OpenShard", tar: Path, layout: Layout) -> dict[str, Any]:
    """Move in what was written, the record last."""
    record = shard.record(layout)
    if shard.samples:
        output.move_in(tar, shard.plan.name)
        output.put(f"{shard.plan.name}.idx", np.array([*shard.begins, shard.end], "<u8").tobytes())
    output.put(sidecar(shard.plan.name, "members"), np.array(shard.members, dtype=MEMBER).tobytes())
    output.put(sidecar(shard.plan.name, "json"), json.dumps(record, indent=1).encode())
    return _brief(record)


class _OpenShard:
    """The state of a shard while it is written."""

    def __init__(self, plan: ShardPlan, listing: Listing, policy: ImagePolicy, copies: Copies | None) -> None:
        self.plan, self.listing, self.policy, self.copies = plan, listing, policy, copies
        self.offset, self.end, self.digest = 0, 0, hashlib.sha256()
        self.members: list[tuple[int, int, int]] = []
        self.begins: list[int] = []
        self.keys: tuple[str, str] | None = None
        self.extensions: tuple[str, ...] = ()
        self.refusals: list[tuple[str, str, str, str]] = []
        self.kinds: Counter[Kind] = Counter()

    @property
    def samples(self) -> int:
        """Return how many samples were taken so far."""
        return len(self.begins)

    def write(self, file: BinaryIO) -> None:
        """Write the tar and bring it to the disk."""
        rows = self.listing.rows(self.plan.split, self.plan.items)
        for position, row in enumerate(rows):
            self._add(file, position, row)
        self.end = self.offset
        self._append(file, bytes(2 * BLOCK + -(self.offset + 2 * BLOCK) % RECORD))
        file.flush()
        os.fsync(file.fileno())

    def record(self, layout: Layout) -> dict[str, Any]:
        """Return the commit record."""
        first, last = self.keys or (None, None)
        return {
            "version": FORMAT_VERSION,
            "name": self.plan.name,
            "layout_hash": layout["layout_hash"],
            "options_hash": layout["options_hash"],
            "listed": len(self.plan.items),
            "samples": self.samples,
            "refused": len(self.refusals),
            "bytes": self.offset if self.samples else 0,
            "sha256": self.digest.hexdigest() if self.samples else "",
            "members": list(self.extensions),
            "first_key": first,
            "last_key": last,
            **_counts(self.kinds),
            "refusals": self.refusals,
        }

    def _add(self, file: BinaryIO, position: int, row: Row) -> None:
        """Append the sample at ``position`` of the plan, or note why it is refused."""
        original = self._original(position)
        if original is not None:
            self.refusals.append((row.source, "duplicate", f"the same bytes as {original}", ""))
            return
        refused = refused_by_bytes(row.size, self.policy)
        if refused is not None:
            self.refusals.append((row.source, refused.reason, refused.detail, ""))
            return
        try:
            raw = self.listing.read(self.plan.split, row)
        except OSError as error:
            reason = REASONS.get(error.errno or 0, "unreadable")
            self.refusals.append((row.source, reason, printable(error.strerror or str(error)), ""))
            return
        except MemoryError:
            self.refusals.append((row.source, "too_large", "not enough memory to read it", ""))
            return
        digest = hashlib.sha256(raw).hexdigest()
        outcome = accept(raw, self.policy) if row.size in (UNKNOWN, len(raw)) else _changed(row.size, len(raw))
        if isinstance(outcome, Refused):
            self.refusals.append((row.source, outcome.reason, printable(outcome.detail), digest))
            return
        self._append_sample(file, f"{self.plan.first + position:09d}", row, outcome, digest)

    def _append_sample(self, file: BinaryIO, key: str, row: Row, image: Accepted, digest: str) -> None:
        members = sample_members(key, row.label, row.source, image, digest, self.policy.format)
        parts, offset = list[bytes](), self.offset
        for extension, payload in members.items():
            padding = -len(payload) % BLOCK
            parts += (tar_header(f"{key}.{extension}", len(payload)), payload, bytes(padding))
            self.members.append((offset + BLOCK, len(payload), zlib.crc32(payload)))
            offset += BLOCK + len(payload) + padding
        self.begins.append(self.offset)
        self._append(file, b"".join(parts))
        self.keys = (self.keys[0] if self.keys else key, key)
        self.extensions = tuple(members)
        self.kinds[image.notes, image.source_format, image.source_mode, row.label] += 1

    def _original(self, position: int) -> str | None:
        """Name the image that the one at ``position`` is a copy of, where copies are dropped."""
        found = None if self.copies is None else self.copies.original(int(self.plan.items[position]))
        if found is None:
            return None
        split, item = found
        return f"{split}: {self.listing.rows(split, np.array([item]))[0].source}"

    def _append(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        self.digest.update(data)
        self.offset += len(data)


def _counts(kinds: Counter[Kind]) -> dict[str, dict[str, int]]:
    """Return how often each note, format, mode and label occurs among samples."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("notes", "formats", "modes", "labels")}
    for (notes, source_format, source_mode, label), count in kinds.items():
        for note in notes or ("passed",):
            counts["notes"][note] += count
        counts["formats"][source_format] += count
        counts["modes"][source_mode] += count
        if label is not None:
            counts["labels"][str(label)] += count
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}


def _changed(listed: int, found: int) -> Refused:
    return Refused("changed", f"{listed} bytes when listed, {found} now")


def sample_members(key: str, label: int | None, source: str, image: Accepted, digest: str, extension: str) -> Members:
    """Return the members of a sample by extension, in the order of the tar."""
    members = {} if label is None else {"cls": str(label).encode()}
    members[extension] = image.image
    members["json"] = _short_json(key, source, image, digest)
    return members


def _short_json(key: str, source: str, image: Accepted, digest: str) -> bytes:
    """Describe a sample in less than ``JSON_LIMIT`` bytes, keeping the end of a long source."""
    (width, height), (original_width, original_height) = image.size, image.original_size
    begin = f'{{"key": "{key}", "source": '
    end = (
        f', "sha256": "{digest}", "width": {width}, "height": {height}, "original_width": {original_width}, '
        f'"original_height": {original_height}, "transform": "{",".join(image.notes)}"}}'
    )
    encoded = f"{begin}{JSON.encode(source)}{end}".encode()
    while len(encoded) >= JSON_LIMIT:
        excess = len(encoded) - JSON_LIMIT
        source = "..." + source.removeprefix("...")[max(1, excess // 4) :]
        encoded = f"{begin}{JSON.encode(source)}{end}".encode()
    return encoded


def tar_header(name: str, size: int) -> bytes:
    """Return the USTAR header of a plain read-only file without owner or time; ``name`` has at most 100 letters."""
    named, sized = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o" % (sum(named) + sum(sized) + SUM_OF_THE_REST)
    return b"".join((named.ljust(100, b"\0"), MODE_OWNER, sized, TIME, checksum, TYPE_MAGIC))
