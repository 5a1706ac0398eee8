"""The peers of tools/bench_stream.py: each loads the same images as its documentation says; nothing of mpp is imported.

    PEERS/bin/python tools/bench_stream_peers.py NAME TASK
    PEERS/bin/python tools/bench_stream_peers.py write FORMATS

``write`` makes the formats of the peers out of FORMATS/images, a folder of classes, and of FORMATS/shards, mpp's tars.
Views are float and normalised, as their users hand them over, or uint8, which mpp hands over, where the name says so.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_loops import MEAN, STD, Batches, Task, endless, run_contestant
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.transforms import v2

ENDLESS = 10**9  # samples of an epoch, where a peer has a setting for it


def main() -> None:
    """Write the formats, or measure the peer that the command line names."""
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        run_contestant(PEERS)


def write(formats: Path) -> None:
    """Write every format that is not there yet."""
    files = sorted((formats / "images").glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    samples = [(str(file), classes.index(file.parent.name)) for file in files]
    for name, writer in {"mds": write_mds, "litdata": write_litdata, "arrow": write_arrow}.items():
        if not (formats / name).exists():
            writer(samples, str(formats / name))


def write_mds(samples: list[tuple[str, int]], out: str) -> None:
    """Write MosaicML's format; its encoding "jpeg" copies the bytes of a file that was opened and not yet decoded."""
    from streaming import MDSWriter

    with MDSWriter(out=out, columns={"image": "jpeg", "label": "int"}) as writer:
        for file, label in samples:
            writer.write({"image": Image.open(file), "label": label})


def write_litdata(samples: list[tuple[str, int]], out: str) -> None:
    """Write LitData's format; it too copies the bytes of a file that was opened and not yet decoded."""
    import litdata

    litdata.optimize(_litdata_sample, samples, out, num_workers=1, chunk_bytes="64MB", verbose=False)


def _litdata_sample(sample: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(sample[0]), "label": sample[1]}


def write_arrow(samples: list[tuple[str, int]], out: str) -> None:
    """Write the format of Hugging Face datasets; the files' bytes are embedded."""
    import datasets

    table = datasets.Dataset.from_dict(
        {"image": [file for file, _ in samples], "label": [label for _, label in samples]}
    )
    table.cast_column("image", datasets.Image()).save_to_disk(out)


def train_view(size: int, uint8: bool = False) -> Callable[[Any], torch.Tensor]:
    """Return what the users of torchvision make of a Pillow image in training, for ImageNet and for CIFAR."""
    if uint8:
        return transforms.Compose([*_crop(transforms, size), transforms.PILToTensor()])
    return transforms.Compose([*_crop(transforms, size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def tensor_view(size: int) -> Callable[[Any], torch.Tensor]:
    """Return the same for loaders that decode to uint8 tensors."""
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([*_crop(v2, size), *floats])


def _crop(package: Any, size: int) -> list[Any]:
    crop = package.RandomCrop(size, padding=4) if size < 64 else package.RandomResizedCrop(size)
    return [crop, package.RandomHorizontalFlip()]


def load_webdataset(task: Task, uint8: bool = False) -> Batches:
    """Load the tars that mpp-shard wrote."""
    import webdataset

    tars = sorted(map(str, Path(task.formats, "shards", "train").glob("*.tar")))
    samples = webdataset.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(1000).decode("pil")
    views = samples.to_tuple("jpg", "cls").map_tuple(train_view(task.size, uint8), _same).batched(task.batch)
    return endless(webdataset.WebLoader(views, batch_size=None, num_workers=task.workers))


def _same(label: int) -> int:
    return label


def load_folder(task: Task, uint8: bool = False) -> Batches:
    """Load the folder of classes by torchvision."""
    from torchvision.datasets import ImageFolder

    return _loaded(ImageFolder(f"{task.formats}/images", train_view(task.size, uint8)), task)


def load_arrow_transformed(task: Task) -> Batches:
    """Load by Hugging Face datasets, with set_transform, its documented way for images."""
    import datasets

    view = train_view(task.size)

    def transform(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples["image"] = [view(image.convert("RGB")) for image in examples["image"]]
        return examples

    table = datasets.load_from_disk(f"{task.formats}/arrow")
    table.set_transform(transform)
    return _pairs(_loaded(table, task))


def load_arrow_torch(task: Task) -> Batches:
    """Load by Hugging Face datasets, with format torch; the views are made as a batch is put together."""
    import datasets

    view = tensor_view(task.size)

    def collate(examples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([view(example["image"]) for example in examples])
        return images, torch.stack([example["label"] for example in examples])

    return _loaded(datasets.load_from_disk(f"{task.formats}/arrow").with_format("torch"), task, collate)


def _loaded(samples: Any, task: Task, collate: Callable[[list[Any]], Any] | None = None) -> Any:
    """Return batches of a dataset that has a length, shuffled, without a pause between epochs."""
    sampler = RandomSampler(samples, num_samples=ENDLESS)
    return iter(DataLoader(samples, task.batch, sampler=sampler, num_workers=task.workers, collate_fn=collate))


def load_mosaic(task: Task) -> Batches:
    """Load by MosaicML streaming."""
    from streaming import StreamingDataset

    view = train_view(task.size)

    class Views(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return view(sample["image"].convert("RGB")), sample["label"]

    samples = Views(local=f"{task.formats}/mds", shuffle=True, batch_size=task.batch)
    return endless(DataLoader(samples, task.batch, num_workers=task.workers, persistent_workers=task.workers > 0))


def load_litdata(task: Task) -> Batches:
    """Load by LitData, which decodes to tensors by torchvision."""
    from litdata import StreamingDataLoader, StreamingDataset

    view = tensor_view(task.size)

    class Views(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return view(sample["image"]), sample["label"]

    samples = Views(f"{task.formats}/litdata", shuffle=True, drop_last=True)
    return endless(
        StreamingDataLoader(samples, batch_size=task.batch, num_workers=task.workers, persistent_workers=True)
    )


def _pairs(batches: Batches) -> Batches:
    return ((batch["image"], batch["label"]) for batch in batches)  # type: ignore[call-overload]


PEERS: dict[str, Callable[[Task], Batches]] = {
    "webdataset": load_webdataset,
    "webdataset uint8": lambda task: load_webdataset(task, uint8=True),
    "ImageFolder": load_folder,
    "ImageFolder uint8": lambda task: load_folder(task, uint8=True),
    "datasets set_transform": load_arrow_transformed,
    "datasets format torch": load_arrow_torch,
    "MosaicML streaming": load_mosaic,
    "LitData": load_litdata,
}

if __name__ == "__main__":
    main()
