"""Blocks in a row, some of them keeping their input alone: activations are computed again in the backward pass."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Sequence[nn.Module], tokens: Tensor, *, every: int) -> Tensor:
    """Run the blocks; every ``every``-th one keeps only its input, none where ``every`` is 0. Results are the same."""
    for number, block in enumerate(blocks, start=1):
        if every and number % every == 0:
            # With stochastic depth the second time must draw what the first time drew.
            tokens = cast(Tensor, checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=_random(block)))
        else:
            tokens = block(tokens)
    return tokens


def _random(block: nn.Module) -> bool:
    """Tell whether a block draws random numbers in training."""
    return any(getattr(module, "drop_prob", 0.0) or getattr(module, "p", 0.0) for module in block.modules())
