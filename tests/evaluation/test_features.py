"""Features of a split: every example once, whatever the batch, in the order of the ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpp.config import resolve
from mpp.errors import NumericsError
from mpp.evaluation.features import Features, extract
from mpp.evaluation.frozen import FrozenBackbone, open_frozen
from mpp.evaluation.labels import labelled_shards, read_labels
from mpp.evaluation.recipe import TransferConfig
from mpp.stream.loader import StreamConfig, evaluation_batches
from mpp.stream.views import ViewConfig
from mpp.training.devices import open_accelerator


def frozen_run(run: Path) -> FrozenBackbone:
    return open_frozen(resolve(TransferConfig, {"backbone": str(run), "shards": "", "out": ""}))


def features(frozen: FrozenBackbone, shards: Path, batch: int) -> Features:
    split = labelled_shards(str(shards), "test")
    return extract(frozen, split, open_accelerator("fp32"), batch=batch, stream=StreamConfig(workers=0))


def test_every_image_has_its_features_once_whatever_the_batch(tiny_run: Path, tiny_shards: Path) -> None:
    frozen = frozen_run(tiny_run)
    shards = labelled_shards(str(tiny_shards), "test")
    (whole,) = evaluation_batches(shards, ViewConfig(), (8, 8), batch=31)
    expected: dict[str, Any] = frozen.network(whole.images)
    for batch in (1, 7, 31, 256):
        found = features(frozen, tiny_shards, batch)
        assert found.ids.tolist() == list(range(31))
        assert (found.labels == read_labels(shards)).all()
        assert set(found.by_kind) == {"class_token", "patch_mean"}
        for kind, values in found.by_kind.items():
            assert values.dtype == np.float32 and values.shape == (31, 16)
            np.testing.assert_allclose(values, expected[kind].numpy(), atol=1e-5)


def test_it_says_how_far_it_is(tiny_run: Path, tiny_shards: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features(frozen_run(tiny_run), tiny_shards, 8)
    assert "features of test: 31 of 31 images" in capfd.readouterr().err


def test_features_that_are_not_finite_are_refused(tiny_run: Path, tiny_shards: Path) -> None:
    frozen = frozen_run(tiny_run)
    with torch.no_grad():
        next(frozen.network.parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="features of test under masked_patches"):
        features(frozen, tiny_shards, 8)
