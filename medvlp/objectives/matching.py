"""Image-text matching: which pairs are asked about, and the loss of the answers.

Guarantee: a text that is the same, token by token, as an image's own is never its mismatch. Draws come from torch's
global generator. On several ranks the mean of the values is the mean over all pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]

ABSENT, MATCH = 0, 1
"""Columns of the logits, as in the released heads."""
LEAST_HARDNESS = 1e-4


def itm(logits: Float[torch.Tensor, "n 2"], matched: Bool[torch.Tensor, " n"]) -> tuple[Scalar, Scalar]:
    """Cross-entropy of match and mismatch (M3AE, arXiv 2209.07098; ALBEF, arXiv 2107.07651, equation 8)."""
    with torch.autocast(logits.device.type, enabled=False):
        total = functional.cross_entropy(at_least_float32(logits), matched.long(), reduction="sum")
        return mean_over_ranks(total, count_of(len(logits), logits))


def match_score(logits: Float[torch.Tensor, "*n 2"]) -> Float[torch.Tensor, "*n"]:
    """Return the logarithm of the odds of a match."""
    logits = at_least_float32(logits)
    return logits[..., MATCH] - logits[..., ABSENT]


def same_texts(ids: Int[torch.Tensor, "b l"], mask: Bool[torch.Tensor, "b l"]) -> Bool[torch.Tensor, "b b"]:
    """Return which texts are equal, pads aside; True on the diagonal."""
    ids = torch.where(mask, ids, -1)
    return (ids[:, None] == ids[None]).all(-1)


def replacements(
    same: Bool[torch.Tensor, "b b"], share: float = 0.5
) -> tuple[Int[torch.Tensor, " b"], Bool[torch.Tensor, " b"]]:
    """Draw a mismatch for a share of the rows, at random among the others of the batch.

    Args:
        same: Pairs that would be no mismatch; True on the diagonal.
        share: Share of the rows that get one, rounded up, as in M3AE.

    Returns:
        index, matched: Whose image row i gets, and whether that is no mismatch. A row for which the batch holds none
        keeps its own.
    """
    rows = len(same)
    chosen = torch.rand(rows, device=same.device).argsort() < rows - int(rows * (1 - share))
    possible = chosen & ~same.all(1)
    drawn = torch.where(same, -1.0, torch.rand(same.shape, device=same.device)).argmax(1) if rows else chosen.long()
    return torch.where(possible, drawn, torch.arange(rows, device=same.device)), ~possible


def hard_negatives(
    similarity: Float[torch.Tensor, "b k"], excluded: Bool[torch.Tensor, "b k"]
) -> tuple[Int[torch.Tensor, " b"], Bool[torch.Tensor, " b"]]:
    """Draw a mismatch for each row, the more likely the more similar it is (ALBEF, arXiv 2107.07651, section 3.2).

    Args:
        similarity: Scaled similarities, as in the softmax of the contrast; no gradient.
        excluded: Pairs that are no mismatch.

    Returns:
        index, found: Column of each row's mismatch, and whether there is one (else `index` says nothing).
    """
    with torch.no_grad():
        weights = at_least_float32(similarity).softmax(1) + LEAST_HARDNESS
        weights = weights.masked_fill(excluded, 0.0)
        found = ~excluded.all(1)
        if weights.numel() == 0:
            return found.long(), torch.zeros_like(found)
        weights[:, 0] = weights[:, 0].where(found, 1.0)
        return torch.multinomial(weights, 1)[:, 0], found
