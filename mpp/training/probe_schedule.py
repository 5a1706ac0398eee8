"""What is measured of a frozen network: which probes, and while it is pretrained also when and on which images."""

from typing import Annotated, Literal

from pydantic import Field

from mpp.config import config

Probe = Literal["fewshot", "knn", "linear"]


@config
class ProbeRecipe:
    """Which probes; the defaults are big_vision's few-shot, DINO's neighbours and a linear probe."""

    probes: tuple[Probe, ...] = Field(("fewshot", "knn", "linear"), min_length=1, description="what is measured")
    shots: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 5, 10, 25), min_length=1, description="few-shot: labelled images of each class"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="few-shot: seeds of the images drawn"
    )
    neighbours: int = Field(20, gt=0, description="kNN: how many training images vote")
    temperature: float = Field(0.07, gt=0, description="kNN: a vote weighs exp(cosine / temperature)")
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="linear: L2 beside the mean cross-entropy, chosen on held-out labels",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="linear: share of each class that the choice is made on")


@config
class ProbeSchedule(ProbeRecipe):
    """Probes of the network while it is pretrained: they look on, and change nothing in the training."""

    every: int | None = Field(None, gt=0, description="steps between probes, from step 0 to the last; null: none")
    shards: str | None = Field(None, description="labelled set that they look at; null: the one trained on")
    train_split: str = Field("train", description="split whose labels they use")
    test_split: str = Field(
        "test", description="split they are tested on; a recipe chosen by it has no test left, choose by validation"
    )
    images: int = Field(
        2000, gt=0, description="most images of either split, drawn once; of train equally many of each class"
    )
    probes: tuple[Probe, ...] = Field(("fewshot", "knn"), min_length=1, description="what is measured")
    shots: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (10,), min_length=1, description="few-shot: labelled images of each class"
    )
