"""What other readers need beside the tars: dataset card, .tar.idx, sizes.json, _info.json, index.json, .nv-meta.

Everything is derived from the commit records, so writing it again gives the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from mpp.disk import fsync_path
from mpp.shards.outputs import Output, temporary_file
from mpp.shards.shardset import INDEX, RECORDS, ShardRecord, sidecar

Records = Sequence[ShardRecord]
Groups = dict[str, list[ShardRecord]]
ENERGON_SPLITS = {"validation": "val"}
REFUSED_COLUMNS = ("source", "reason", "detail", "sha256")


def finalize(output: Output, layout: dict[str, Any], records: Records) -> None:
    """Write every sidecar of a set from all its commit records in layout order, ``index.json`` last."""
    classes = layout["classes"]
    written = [record for record in records if record.samples]
    groups = {split: [r for r in written if PurePosixPath(r.name).parent.name == split] for split in layout["bounds"]}
    groups = {split: group for split, group in groups.items() if group}
    write_refused(output, records)
    sizes = {PurePosixPath(record.name).name: record.samples for record in written}
    output.put("sizes.json", _json(sizes))
    output.put("_info.json", _json(timm_info(groups, classes)))
    extension = written[0].members[-2] if written else "jpg"
    for name, text in energon_files(groups, classes, extension).items():
        output.put(f".nv-meta/{name}", text)
    output.put("README.md", dataset_card(groups, classes, extension).encode())
    output.put(INDEX, _json(wids_index(groups, classes)))


def timm_info(groups: Groups, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Return what timm's WebDataset reader wants to know of each split."""
    splits = {
        split: {
            "name": split,
            "num_samples": sum(record.samples for record in group),
            "filenames": [record.name for record in group],
            "shard_lengths": [record.samples for record in group],
        }
        for split, group in groups.items()
    }
    return {"splits": splits, "class_names": classes}


def wids_index(groups: Groups, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Return the index in the shape of wids, with what :func:`mpp.shards.shardset.open_shards` needs besides."""
    keys = ("samples", "bytes", "sha256", "layout_hash", "refused", "members")
    shards = [
        {"url": record.name, "nsamples": record.samples, "filesize": record.bytes, "split": split}
        | {key: getattr(record, key) for key in keys}
        for split, group in groups.items()
        for record in group
    ]
    head = {"__kind__": "wids-shard-index-v1", "wids_version": 1}
    return head | {"splits": list(groups), "classes": classes, "shardlist": shards}


def energon_files(groups: Groups, classes: tuple[str, ...] | None, extension: str) -> dict[str, bytes]:
    """Return the files of ``.nv-meta`` by name: shard counts, splits, and which member is what."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, group in groups.items():
        parts[ENERGON_SPLITS.get(split, split)] = [record.name for record in group]
    kind = "ImageSample" if classes is None else "ImageClassificationSample"
    fields = {"image": extension} | ({} if classes is None else {"label": "cls"})
    sample = {"sample_type": {"__module__": "megatron.energon", "__class__": kind}, "field_map": fields}
    counts = {record.name: record.samples for group in groups.values() for record in group}
    return {
        ".info.json": _json({"energon_version": "7.4.1", "shard_counts": counts}),
        "split.yaml": yaml.safe_dump({"exclude": [], "split_parts": parts}, sort_keys=False).encode(),
        "dataset.yaml": yaml.safe_dump(sample, sort_keys=False).encode(),
    }


def dataset_card(groups: Groups, classes: tuple[str, ...] | None, extension: str) -> str:
    """Return the README.md whose header tells Hugging Face ``datasets`` which files are shards, and of what."""
    files = [{"split": split, "path": f"{split}/*.tar"} for split in groups]
    header: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": files}]}
    features: list[dict[str, Any]] = [{"name": extension, "dtype": "image"}]
    if classes is not None:
        names = {str(number): name for number, name in enumerate(classes)}
        features.insert(0, {"name": "cls", "dtype": {"class_label": {"names": names}}})
    features.append({"name": "json", "struct": _json_features()})
    features += [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]
    header["dataset_info"] = {"features": features}
    counts = "\n".join(f"| {split} | {len(group):,} | {_samples(group):,} |" for split, group in groups.items())
    labels = "no labels" if classes is None else f"{len(classes)} classes"
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10**6)
    return (
        f"---\n{front}---\n\n# Image shards ({labels})\n\n"
        "USTAR tars for webdataset, `datasets.load_dataset(THIS_FOLDER)`, timm and mpp; written by `mpp-shard`.\n\n"
        f"| split | shards | images |\n|---|---:|---:|\n{counts}\n"
    )


def _json_features() -> list[dict[str, str]]:
    numbers = {"width", "height", "original_width", "original_height"}
    names = ("key", "source", "sha256", "width", "height", "original_width", "original_height", "transform")
    return [{"name": name, "dtype": "int64" if name in numbers else "string"} for name in names]


def _samples(group: Records) -> int:
    return sum(record.samples for record in group)


def write_refused(output: Output, records: Records) -> None:
    """Write the parquet file of every image that was not taken, in layout order; a shard's refusals at a time."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in REFUSED_COLUMNS])
    bad = [sidecar(record.name, "json") for record in records if record.refused]
    with temporary_file(output.work, "refused.parquet") as temporary:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as table:
            for raw in output.read_all(bad):
                columns = list(zip(*json.loads(raw)["refusals"], strict=True))
                table.write_table(pyarrow.table(columns, schema=schema))
        fsync_path(temporary)
        output.move_in(temporary, f"{RECORDS}/refused.parquet")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
