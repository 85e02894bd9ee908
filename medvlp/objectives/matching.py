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


def hardness(
    similarity: Float[torch.Tensor, "b k"], excluded: Bool[torch.Tensor, "b k"], least: float = LEAST_HARDNESS
) -> Float[torch.Tensor, "b k"]:
    """Return how much each column weighs when the mismatch of a row is drawn; not normalised, no gradient.

    Args:
        similarity: Scaled similarities, as in the softmax of the contrast.
        excluded: Pairs that are no mismatch: 0, after the softmax over all.
        least: Added to the softmax, so that no mismatch is out of reach; ALBEF has 1e-4, VELVET-Med nothing.
    """
    weights = at_least_float32(similarity.detach()).softmax(1) + least
    return weights.clamp_min(torch.finfo(weights.dtype).tiny).masked_fill(excluded, 0.0)


def hard_negatives(
    similarity: Float[torch.Tensor, "b k"], excluded: Bool[torch.Tensor, "b k"], least: float = LEAST_HARDNESS
) -> tuple[Int[torch.Tensor, " b"], Bool[torch.Tensor, " b"]]:
    """Draw a mismatch for each row, the more likely the more similar it is (ALBEF, arXiv 2107.07651, section 3.2).

    Args:
        similarity: See `hardness`.
        excluded: Pairs that are no mismatch.
        least: See `hardness`.

    Returns:
        index, found: Column of each row's mismatch, and whether there is one (else `index` says nothing).
    """
    weights, found = hardness(similarity, excluded, least), ~excluded.all(1)
    if weights.numel() == 0:
        return found.long(), torch.zeros_like(found)
    weights[:, 0] = weights[:, 0].where(found, 1.0)
    return torch.multinomial(weights, 1)[:, 0], found


def with_mismatches(
    wrong_image: Int[torch.Tensor, " b"],
    has_image: Bool[torch.Tensor, " b"],
    wrong_text: Int[torch.Tensor, " b"],
    has_text: Bool[torch.Tensor, " b"],
) -> tuple[Int[torch.Tensor, " n"], Int[torch.Tensor, " n"], Bool[torch.Tensor, " n"]]:
    """Return which image and which text each asked pair has, and whether it is a match.

    First every text with its image, then each text with its wrong image, then each image with its wrong text.

    Args:
        wrong_image: Mismatch of each text.
        has_image: Whether there is one.
        wrong_text: Mismatch of each image.
        has_text: Whether there is one.
    """
    rows = torch.arange(len(wrong_image), device=wrong_image.device)
    of_image = torch.cat([rows, wrong_image[has_image], rows[has_text]])
    of_text = torch.cat([rows, rows[has_image], wrong_text[has_text]])
    return of_image, of_text, torch.arange(len(of_image), device=rows.device) < len(rows)
