"""Probes of a network that is still being trained, on a few images that are chosen once."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from mpp.errors import ConfigError, DataError
from mpp.evaluation.features import extract
from mpp.evaluation.frozen import FrozenBackbone, OwnFeatures
from mpp.evaluation.labels import open_splits, read_labels
from mpp.evaluation.probing import check_labels, run_probes
from mpp.model.encoders import Encoder
from mpp.shards.hashing import permutation
from mpp.shards.shardset import ShardSet
from mpp.stream.order import Ints
from mpp.training.devices import divides_weights
from mpp.training.loop import Values
from mpp.training.monitor import Check, Probe
from mpp.training.probe_schedule import ProbeSchedule
from mpp.training.recipe import PretrainConfig
from mpp.training.together import from_main

BATCH = 256  # most images of a process at once; a micro-batch, which has fitted with its gradients, where that is less
_TRAIN, _TEST = 0, 1  # keep the draws of the two apart
_SEED = 0  # the same images for runs of any seed


def open_live_probe(settings: PretrainConfig, accelerator: Accelerator) -> Probe:
    """Return what probes the network of a run as ``settings.probe`` says; all processes call this together.

    Raises ``ConfigError`` where no process will have the whole weights or no labelled set is named, ``DataError`` for
    a set without labels, or with too few.
    """
    schedule = settings.probe
    if divides_weights(accelerator):
        raise ConfigError("probes need whole weights, and ZeRO 3 and FSDP divide them", fix="probe.every=null")
    shards = schedule.shards or settings.shards
    if not isinstance(shards, str):
        raise ConfigError("probe.shards: the run is trained on a mixture", fix="probe.shards=SET, a labelled one")
    with _named_as_probes():
        train, test = open_splits(shards, schedule.train_split, schedule.test_split)
        train_ids = from_main(accelerator, lambda: draw_train(train, schedule))
    test_ids = np.sort(permutation(test.samples, _SEED, _TEST)[: schedule.images])
    batch = min(BATCH, settings.micro_batch or BATCH, settings.global_batch)
    num_classes = len(train.classes or ())

    def probe(network: Encoder, check: Check) -> Values:
        own = _InFp32(OwnFeatures(network))
        frozen = FrozenBackbone(own, settings.vit.image_size, settings.view, "the weights of this step")
        fitted, tested = (
            extract(frozen, split, accelerator, batch=batch, stream=settings.stream, subset=ids, check=check)
            for split, ids in ((train, train_ids), (test, test_ids))
        )
        values = {}
        # Every process solves them: the others would only wait, and none could be asked to stop.
        for found in run_probes(fitted, tested, num_classes, schedule, seed=_SEED, device=accelerator.device):
            values[f"{found['probe']}/{found['feature']}"] = found["top1"]
            check()
        return values

    return probe


def draw_train(train: ShardSet, schedule: ProbeSchedule) -> Ints:
    """Return the ids of the images whose labels are used, ascending; raise ``DataError`` where they are too few."""
    labels, num_classes = read_labels(train), len(train.classes or ())
    each = schedule.images // num_classes
    least = max(schedule.shots) if "fewshot" in schedule.probes else 1
    if each < least:
        raise DataError(
            f"images={schedule.images} are {each} of each of {num_classes} classes, {least} are needed",
            fix=f"probe.images={num_classes * least}",
        )
    members = (np.flatnonzero(labels == label) for label in range(num_classes))
    drawn = [own[permutation(len(own), _SEED, _TRAIN, label)[:each]] for label, own in enumerate(members)]
    chosen = np.sort(np.concatenate(drawn)).astype(np.int64)
    check_labels(labels[chosen], num_classes, schedule, prefix="probe.")
    return chosen


@contextmanager
def _named_as_probes() -> Iterator[None]:
    """Say of what is wrong that probes need it: it may be a set of their own."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"probe.every asks for probes: {error}") from error


class _InFp32(nn.Module):
    """A network whose weights take part in fp32, though they may be kept, as DeepSpeed does, in bf16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        every = [*network.named_parameters(), *network.named_buffers()]
        values = {name: value for name, value in every if value.is_floating_point()}
        low = any(value.dtype != torch.float32 for value in values.values())
        self._values = {name: value.detach().float() for name, value in values.items()} if low else None

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        if self._values is None:
            features: dict[str, Tensor] = self.network(images_BCHW)
        else:
            features = functional_call(self.network, self._values, (images_BCHW,))
        return features
