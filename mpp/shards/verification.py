"""Verify a finished set: compare sizes and counts, and in full every hash, CRC and image, with its records."""

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpp.errors import DataError
from mpp.shards.shardset import (
    INDEX,
    ShardRecord,
    check_size,
    lies_elsewhere,
    local_root,
    place,
    read_file,
    read_index,
    read_table,
    record_of,
    sidecar,
)

DECODED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # formats that Pillow decodes by itself


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at and what is wrong with it, one line a problem."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]


def verify(root: Path, full: bool, map_shards: Callable[..., Iterator[list[str]]] = map) -> VerifyReport:
    """Compare a set with its records: sizes and counts, and with ``full`` every hash, CRC and image.

    ``map_shards(function, shards)`` runs the checks, by default here. Raises ``DataError`` for a folder that is
    no finished set.
    """
    root = local_root(root)
    shards = [record_of(entry) for entry in read_index(str(root))["shardlist"]]
    names = {shard.name if lies_elsewhere(shard.name) else Path(shard.name).name for shard in shards}
    doubles = len(shards) - len(names)
    problems = [f"{doubles} shard names occur twice"] if doubles else []
    listed = {shard.name for shard in shards}
    found_tars = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.tar"))
    problems += [f"{name}: not in {INDEX}" for name in found_tars if name not in listed]
    for found in map_shards(partial(check_shard, str(root), full), shards):
        problems += found
    total = sum(shard.bytes for shard in shards)
    return VerifyReport(len(shards), sum(shard.samples for shard in shards), total, tuple(sorted(problems)))


def check_shard(root: str, full: bool, shard: ShardRecord) -> list[str]:
    """Return every problem of one shard, a line each."""
    problems = check_size(root, shard)
    try:
        commit = json.loads(read_file(place(root, sidecar(shard.name, "json"))))
        if record_of(commit) != shard:
            problems.append(f"{shard.name}: commit record and {INDEX} differ")
        table = read_table(root, shard)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [*problems, f"{shard.name}: commit record cannot be read, {error}"]
    except DataError as error:
        return [*problems, str(error)]
    if problems or not full:
        return problems
    try:
        data = read_file(place(root, shard.name))
    except OSError as error:
        return [f"{shard.name}: cannot be read, {error.strerror}"]
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append(f"{shard.name}: sha256 differs from its record")
    for sample in range(shard.samples):
        problems += _check_sample(data, shard, table, sample)
    return problems


def _check_sample(data: bytes, shard: ShardRecord, table: npt.NDArray[np.void], sample: int) -> list[str]:
    """Compare one sample's members with their CRCs and parse them; decode its image."""
    from PIL import Image

    key = "?"
    try:
        for extension, member in zip(shard.members, table[sample], strict=True):
            begin = int(member["offset"])
            header, payload = data[begin - 512 : begin], data[begin : begin + int(member["size"])]
            key, _, suffix = header[:100].rstrip(b"\0").decode(errors="replace").rpartition("/")[2].partition(".")
            named = lies_elsewhere(shard.name) or suffix == extension  # others name images as they like
            if not named or zlib.crc32(payload) != int(member["crc32"]):
                return [f"{shard.name}: sample {sample} (key {key}): {extension} differs from its record"]
            if extension == "cls":
                int(payload)
            elif extension == "json":
                json.loads(payload)
            else:
                Image.open(io.BytesIO(payload), formats=DECODED).load()
    except Exception as error:  # whatever a decoder raises on damaged bytes is the finding
        return [f"{shard.name}: sample {sample} (key {key}): {type(error).__name__}: {error}"]
    return []
