"""One vector of each organ: a learnt query attends to the tokens that the organ's mask covers (fVLM, arXiv 2501.14548).

Guarantee: a token outside the mask of an organ has no weight in its vector; an organ without a token gives a vector of
zeros, never NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class OrganPool(nn.Module):
    """Attention of one query per organ, with weights that all organs share; then a linear map of each organ's own.

    Args:
        organs: Number of organs.
        width: Width of the tokens, a multiple of `heads`.
        dim: Width of the vectors.
        heads: Of the attention.
        dropout: Of the attention weights.
    """

    def __init__(self, organs: int, width: int, dim: int, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(organs, width))  # zero at the start, as in the official code
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.maps = nn.ModuleList(nn.Linear(width, dim) for _ in range(organs))

    def pool(self, tokens: Float[torch.Tensor, "b n c"], cells: Bool[torch.Tensor, "b o n"]) -> torch.Tensor:
        """Return what each organ's query finds, `[b o c]`, before the linear maps.

        Args:
            tokens: Of one or several blocks, side by side.
            cells: Which of them belong to each organ.
        """
        there = cells.any(2)
        # An organ without a token attends to all, so that no softmax is empty; its vector is cleared behind.
        hidden = (~cells & there[..., None]).repeat_interleave(self.attention.num_heads, dim=0)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        found, _ = self.attention(queries, tokens, tokens, attn_mask=hidden, need_weights=False)
        return found * there[..., None].to(found.dtype)

    def forward(
        self, tokens: Float[torch.Tensor, "b n c"], cells: Bool[torch.Tensor, "b o n"]
    ) -> Float[torch.Tensor, "b o d"]:
        """Return the vector of each organ; see `pool`."""
        pooled = self.pool(tokens, cells)
        vectors = torch.stack([linear(pooled[:, organ]) for organ, linear in enumerate(self.maps)], dim=1)
        return vectors * cells.any(2)[..., None].to(vectors.dtype)
