"""Finite discrete tokens: images and texts as mixtures of the entries of one codebook (FDT, Chen et al., CVPR 2023).

Guarantee: pads win no entry, unless the official padding is asked for; scores and weights are computed in at least
float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Codebook(nn.Module):
    """Entries that both sides are described by.

    Args:
        entries: Number `k` of entries.
        dim: Their width `d`.
        attention: sparsemax (the paper) or softmax over the entries.

    Attributes:
        entries: `[k d]`.
    """

    def __init__(self, entries: int, dim: int, attention: Literal["sparsemax", "softmax"] = "sparsemax") -> None:
        super().__init__()
        self.attention = attention
        self.entries = nn.Parameter(torch.randn(entries, dim))

    def forward(
        self,
        queries: Float[torch.Tensor, "b l d"],
        mask: Bool[torch.Tensor, "b l"] | None,
        temperature: torch.Tensor | float,
        legacy_pads: bool = False,
    ) -> tuple[Float[torch.Tensor, "b d"], Float[torch.Tensor, "b k"]]:
        """Return the mixture of entries of each sample, and its weights.

        The score of an entry is the maximum over tokens of `query . entry / sqrt(d)`, divided by the temperature
        (equations 2 to 4).

        Args:
            queries: Tokens mapped to the width of the entries.
            mask: True at real tokens; None where all are.
            temperature: Larger is more even.
            legacy_pads: The scores of pads are 0 instead of minus infinity, so that a pad wins where all real scores
                are negative, as in the official code.
        """
        with torch.autocast(queries.device.type, enabled=False):
            double = queries.dtype == torch.float64
            queries, entries = (t if double else t.float() for t in (queries, self.entries))
            scores = queries @ entries.T / entries.shape[1] ** 0.5
            if mask is not None:
                pad_score = 0.0 if legacy_pads else torch.finfo(scores.dtype).min
                scores = scores.masked_fill(~mask[..., None], pad_score)
            best = scores.amax(1) / temperature
            weights = sparsemax(best) if self.attention == "sparsemax" else best.softmax(1)
            return weights @ entries, weights


def query_map(width: int, dim: int) -> nn.Sequential:
    """Return FDT's map from tokens `[b l width]` to queries `[b l dim]`: two times norm and linear, GELU between."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim))


def sparsemax(scores: Float[torch.Tensor, "b k"]) -> Float[torch.Tensor, "b k"]:
    """Return the nearest point of the probability simplex: many exact zeros (arXiv 1602.02068, algorithm 1)."""
    descending = scores.sort(dim=1, descending=True).values
    rank = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    surplus = descending.cumsum(1) - 1
    size = (rank * descending > surplus).sum(1, keepdim=True).clamp_min(1)
    threshold = surplus.gather(1, size - 1) / size
    return (scores - threshold).clamp_min(0.0)
