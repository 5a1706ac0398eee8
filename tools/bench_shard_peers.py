"""The peers of tools/bench_shard.py: each writes a folder of JPEGs in its own format; nothing of mpp is imported.

PEERS/bin/python tools/bench_shard_peers.py NAME SOURCE OUT PROCESSES
"""

import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARD_SAMPLES = 1_000
SHARD_BYTES = 256_000_000
RESIZED, QUALITY = 160, 90  # shorter side in pixels, JPEG quality


def main() -> None:
    """Run the peer that the command line names over all files below the source folder."""
    name, source, out, processes = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    files = sorted(os.path.join(folder, file) for folder, _, names in os.walk(source) for file in names)
    out.mkdir(parents=True, exist_ok=True)
    PEERS[name](files, out, processes)


def copy_files(files: list[str], out: Path, processes: int) -> None:
    """Copy every file: the floor."""
    for number, file in enumerate(files):
        shutil.copyfile(file, out / f"{number:09d}.jpg")


def write_webdataset(files: list[str], out: Path, processes: int) -> None:
    """Copy the bytes by webdataset's ShardWriter."""
    _share_out(_copied_shards, files, out, processes)


def resize_webdataset(files: list[str], out: Path, processes: int) -> None:
    """Resize by Pillow and write by webdataset's ShardWriter."""
    _share_out(_resized_shards, files, out, processes)


def _share_out(write: Callable[[list[str], str], None], files: list[str], out: Path, processes: int) -> None:
    """Give every process an equal part of the files; a single one works here."""
    parts = [(files[number::processes], f"{out}/{number}-%06d.tar") for number in range(processes)]
    if processes == 1:
        write(*parts[0])
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.starmap(write, parts)


def _copied_shards(files: list[str], pattern: str) -> None:
    _write_shards(files, pattern, lambda raw: raw)


def _resized_shards(files: list[str], pattern: str) -> None:
    from PIL import Image

    def resize(raw: bytes) -> bytes:
        image = Image.open(io.BytesIO(raw)).convert("RGB")
        scale = RESIZED / min(image.size)
        target = io.BytesIO()
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=QUALITY)
        return target.getvalue()

    _write_shards(files, pattern, resize)


def _write_shards(files: list[str], pattern: str, change: Callable[[bytes], bytes]) -> None:
    import webdataset

    with webdataset.ShardWriter(pattern, maxcount=SHARD_SAMPLES, maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, file in enumerate(files):
            key = f"{number:09d}"
            writer.write({"__key__": key, "jpg": change(Path(file).read_bytes()), "json": _notes(key, file)})


def _notes(key: str, file: str) -> dict[str, Any]:
    """Return as much json as mpp-shard writes; nothing in it is computed from the image."""
    sizes = {"width": 224, "height": 224, "original_width": 224, "original_height": 224}
    return {"key": key, "source": file[-24:], "sha256": "0" * 64, **sizes, "transform": ""}


def write_mds(files: list[str], out: Path, processes: int) -> None:
    """Copy the bytes by MosaicML's MDSWriter."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": "bytes", "notes": "json"}) as writer:
        for number, file in enumerate(files):
            writer.write({"image": Path(file).read_bytes(), "notes": _notes(str(number), file)})


def write_litdata(files: list[str], out: Path, processes: int) -> None:
    """Copy the bytes by LitData's optimize."""
    import litdata

    litdata.optimize(_litdata_sample, files, str(out), num_workers=processes, chunk_bytes="64MB", verbose=False)


def _litdata_sample(file: str) -> dict[str, Any]:
    return {"image": Path(file).read_bytes(), "notes": json.dumps(_notes("000000000", file))}


def write_datasets(files: list[str], out: Path, processes: int) -> None:
    """Copy the bytes by save_to_disk of Hugging Face datasets."""
    import datasets

    notes = [json.dumps(_notes("000000000", file)) for file in files]
    table = datasets.Dataset.from_dict({"image": files, "notes": notes})
    table.cast_column("image", datasets.Image()).save_to_disk(out)


PEERS: dict[str, Callable[[list[str], Path, int], None]] = {
    "copy": copy_files,
    "webdataset": write_webdataset,
    "webdataset-resize": resize_webdataset,
    "mds": write_mds,
    "litdata": write_litdata,
    "datasets": write_datasets,
}

if __name__ == "__main__":
    main()
