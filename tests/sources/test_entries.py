"""Every kind of source does what a corpus does."""

import inspect
import typing

import pytest

from mpp.sources.corpora import AnyCorpus
from mpp.sources.entries import Corpus

KINDS = typing.get_args(typing.get_args(AnyCorpus)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["entries", "classes", "describe", "read"])
def test_every_kind_has_the_methods_of_a_corpus(kind: type, method: str) -> None:
    wanted = inspect.signature(getattr(Corpus, method)).parameters
    assert list(inspect.signature(getattr(kind, method)).parameters) == list(wanted)


def test_every_kind_has_a_name_of_its_own() -> None:
    names = [typing.get_args(typing.get_type_hints(kind)["kind"]) for kind in KINDS]
    assert len(set(names)) == len(KINDS) == 6
