"""stub"""

from typing import NamedTuple

from mpp.shards.shardset import ShardSet


class Shared(NamedTuple):
    count: int
    examples: tuple[str, ...]


def shared_images(one: ShardSet, other: ShardSet) -> Shared:
    return Shared(0, ())
