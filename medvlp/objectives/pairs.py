"""Scores of every image with every text that compare all tokens of the two: in pieces, over ranks, and their contrast.

Guarantee: a text without tokens is no key and no query, nor is its image a query; how many pairs are scored at once
changes memory and no value. On several ranks local rows meet everybody's, as in `contrastive`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]

PAIRS_AT_ONCE = 1024
Score = Callable[..., torch.Tensor]


def pairwise(
    score: Score, left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...], at_once: int = PAIRS_AT_ONCE
) -> Float[torch.Tensor, "n m"]:
    """Return `score(*left, *right)`, computed for some rows of `right` at a time.

    More than one piece is computed again in the backward pass instead of being kept.

    Args:
        score: From tensors with n and with m rows to `[n m]`; column j depends on row j of `right` alone.
        left: Tensors with n rows.
        right: Tensors with m rows.
        at_once: Pairs of rows scored at a time, at least one column.
    """
    columns = max(1, at_once // max(1, len(left[0])))
    if len(right[0]) <= columns:
        return score(*left, *right)
    parts = zip(*(tensor.split(columns) for tensor in right), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([score(*left, *part) for part in parts], dim=1)
    return torch.cat(
        [checkpoint(score, *left, *part, use_reentrant=False, preserve_rng_state=False) for part in parts], dim=1
    )


def gather_tokens(
    tokens: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]
) -> tuple[Float[torch.Tensor, "n m d"], Bool[torch.Tensor, "n m"]]:
    """Return the tokens and masks of all ranks in rank order, padded to the longest; gradients flow back."""
    if world_size() == 1:
        return tokens, mask
    shapes = gather_counts(list(mask.shape), tokens.device)
    counts, longest = [rows for rows, _ in shapes], max(length for _, length in shapes)
    missing = longest - mask.shape[1]
    tokens, mask = functional.pad(tokens, (0, 0, 0, missing)), functional.pad(mask, (0, missing))
    return gather_with_gradient(tokens, counts), gather_with_gradient(mask.to(torch.uint8), counts).bool()


def diagonal_ce(
    by_image: Float[torch.Tensor, "b m"],
    by_text: Float[torch.Tensor, "b m"],
    has_text: Bool[torch.Tensor, " b"],
    image_weight: float = 0.5,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each local image over all texts and of each local text over all images; row i belongs to row i.

    Args:
        by_image: Logits of local images with everybody's texts.
        by_text: Logits of local texts with everybody's images.
        has_text: False for a pair whose text has no tokens: it is left out.
        image_weight: Weight of image to text; text to image has the rest.
    """
    counts = [row[0] for row in gather_counts([len(has_text)], has_text.device)]
    everyones = gather_with_gradient(has_text.to(torch.uint8), counts).bool()
    by_image = by_image.masked_fill(~everyones, torch.finfo(by_image.dtype).min)
    own = torch.arange(len(has_text), device=has_text.device)
    terms = [logits.log_softmax(1)[own, own + sum(counts[: rank()])] for logits in (by_image, by_text)]
    total = -(image_weight * terms[0] + (1 - image_weight) * terms[1]).masked_fill(~has_text, 0.0).sum()
    value, pairs = mean_over_ranks(total, has_text.sum().to(total.dtype))
    return value, 2 * pairs
