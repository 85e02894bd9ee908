"""Captioning: the likelihood of each token given the image and the tokens before it.

Guarantee: pads are no target; the value is the mean over the targets of all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]


def captioning(
    logits: Float[torch.Tensor, "b l v"], ids: Int[torch.Tensor, "b l"], mask: Bool[torch.Tensor, "b l"]
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of the logits at each place against the token that follows.

    Args:
        logits: Of a causal decoder that has read `ids` up to and with each place.
        ids: Tokens, the first of which is given.
        mask: True at real tokens.

    Returns:
        The mean over targets, and their local number.
    """
    with torch.autocast(logits.device.type, enabled=False):
        targets, counted = ids[:, 1:], mask[:, 1:] & mask[:, :-1]
        terms = functional.cross_entropy(at_least_float32(logits[:, :-1]).transpose(1, 2), targets, reduction="none")
        total = terms.masked_fill(~counted, 0.0).sum()
        return mean_over_ranks(total, counted.sum().to(total.dtype))
