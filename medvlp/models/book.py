"""Embeddings of a fixed list of texts: the descriptions of findings and of places that become queries.

Guarantee: with a frozen text tower the embeddings are computed once and saved with the model; with one that trains they
are computed anew at every call, never kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.models.text import TextTower
from medvlp.types import TextBatch

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Book(nn.Module):
    """Tokens of the texts, and where the tower is frozen their embeddings.

    A saved model brings its embeddings along: until they are loaded they are NaN.

    Args:
        tokens: The texts.
        tower: The text tower that embeds them.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    vectors: torch.Tensor | None

    def __init__(self, tokens: TextBatch, tower: TextTower) -> None:
        super().__init__()
        self.register_buffer("ids", tokens.ids, persistent=False)
        self.register_buffer("mask", tokens.mask, persistent=False)
        self.register_buffer("vectors", None)
        if not tower.config.freeze:
            return
        if tower.config.architecture is not None:
            self.vectors = torch.full((len(tokens.ids), tower.dim), torch.nan)
            return
        device = next(tower.parameters()).device
        with torch.no_grad():
            self.vectors = tower(tokens.to(device)).pooled

    def __len__(self) -> int:
        return len(self.ids)

    def forward(self, tower: TextTower, rows: Int[torch.Tensor, " n"] | None = None) -> Float[torch.Tensor, "n e"]:
        """Return the embeddings of all texts, or of some rows; with gradient where the tower trains."""
        if self.vectors is not None:
            return self.vectors if rows is None else self.vectors[rows]
        ids, mask = (self.ids, self.mask) if rows is None else (self.ids[rows], self.mask[rows])
        return tower(TextBatch(ids, mask)).pooled
