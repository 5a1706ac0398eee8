"""The last block of a ViT at some of its tokens only: the same numbers, without half of a block's work.

A loss on half of the patches needs their outputs alone, and above the last block's keys and values tokens do not meet.
Shapes: B images, T tokens, D width, M tokens of each image that are wanted.
"""

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class BlockAt(Block):
    """A timm ``Block`` that can return some tokens only. A subclass, so that wrappers go by the name of ``Block``."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, at_BM: Tensor | None = None
    ) -> Tensor:
        """Return the tokens [B, T, D], or [B, M, D] of them; dropped paths are drawn alike in both."""
        if at_BM is None:
            return super().forward(x, attn_mask, is_causal)
        out = take(x, at_BM)
        out = out + self.drop_path1(self.ls1(_attend(cast(Attention, self.attn), self.norm1(x), at_BM)))
        return cast(Tensor, out + self.drop_path2(self.ls2(self.mlp(self.norm2(out)))))


def select_in_last_block(blocks: nn.Sequential) -> None:
    """Let the last block compute some tokens only, where it is of the kind that is known to allow it exactly."""
    last = blocks[-1]
    if type(last) is Block and type(last.attn) is Attention and last.attn.gate is None and not _drops(last):
        last.__class__ = BlockAt


def run_last(block: nn.Module, tokens_BTD: Tensor, at_BM: Tensor | None) -> Tensor:
    """Run the last block; return all tokens, or those at ``at_BM`` (int64 [B, M])."""
    if at_BM is None:
        return cast(Tensor, block(tokens_BTD))
    if isinstance(block, BlockAt):
        return cast(Tensor, block(tokens_BTD, at_BM=at_BM))
    return take(block(tokens_BTD), at_BM)


def take(rows_BND: Tensor, at_BM: Tensor) -> Tensor:
    """Return the rows [B, M, D] of each image; whole rows are copied, several times as fast as ``gather`` on a CPU."""
    images, count = rows_BND.shape[:2]
    starts_B1 = torch.arange(0, images * count, count, device=at_BM.device)[:, None]
    rows: Tensor = rows_BND.flatten(0, 1).index_select(0, (at_BM + starts_B1).flatten()).unflatten(0, at_BM.shape)
    return rows


def _attend(attention: Attention, x_BTD: Tensor, at_BM: Tensor) -> Tensor:
    """Attend from the wanted tokens to all; as ``Attention.forward`` where nothing is dropped."""
    heads = (attention.num_heads, attention.head_dim)
    # Queries of all tokens too: a part of the layer's weight would be out of reach of ZeRO 3, which gathers by module.
    query_BTE, key_value_BTF = attention.qkv(x_BTD).split([attention.attn_dim, 2 * attention.attn_dim], dim=-1)
    query = take(query_BTE, at_BM).unflatten(-1, heads).transpose(1, 2)
    key, value = key_value_BTF.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value)
    return cast(Tensor, attention.proj(attention.norm(out.transpose(1, 2).flatten(2))))


def _drops(block: nn.Module) -> bool:
    """Tell whether tokens are dropped one by one: fewer tokens would draw other numbers."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
