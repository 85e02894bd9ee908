"""Contrast among the tokens of one sample: MGCA's cross-attention token alignment (Wang et al., arXiv 2210.06044).

Guarantee: a sample's terms depend on that sample alone, and pads enter neither softmax nor sums, unless the official
padding is asked for. No gradient passes through the weights of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]


def token_alignment(
    tokens: Float[torch.Tensor, "b n d"],
    others: Float[torch.Tensor, "b m d"],
    weights: Float[torch.Tensor, "b n"],
    mask: Bool[torch.Tensor, "b n"],
    other_mask: Bool[torch.Tensor, "b m"],
    temperature: float = 0.1,
    unit_contexts: bool = True,
    legacy_pads: bool = False,
) -> tuple[Scalar, Scalar]:
    """Contrast each token with what it attends to on the other side, among the tokens of its sample.

    With cosines throughout, token i attends to the other side by `softmax(cos/temperature)`; its context is the
    weighted mean there. The matrix `token_i . context_j / temperature` is scored by cross-entropy over j and over i
    with diagonal targets; each token's mean of the two is weighted, summed over the tokens of a sample and averaged
    over samples (MGCA, equations 4 to 6, for words over patches and for patches over words).

    Args:
        tokens: Projected tokens, of any length.
        others: Projected tokens of the other side, of any length.
        weights: Weight of each token; see `clipped_attention`.
        mask: True at real tokens.
        other_mask: True at real tokens of the other side.
        temperature: Of the attention and of the contrast.
        unit_contexts: Bring contexts to length 1; the official code does so but for patches of a ViT.
        legacy_pads: Padded tokens stay in the sums as wrong answers, as in the official code.

    Returns:
        The value, and the number of samples that have tokens on both sides.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens, others = unit(tokens), unit(others)
        lowest = torch.finfo(tokens.dtype).min
        attention = (tokens @ others.transpose(1, 2) / temperature).masked_fill(~other_mask[:, None], lowest).softmax(2)
        contexts = attention @ others
        if unit_contexts:
            contexts = unit(contexts)
        scores = tokens @ contexts.transpose(1, 2) / temperature
        kept = torch.ones_like(mask) if legacy_pads else mask
        over_contexts = scores.masked_fill(~kept[:, None], lowest).log_softmax(2)
        over_tokens = scores.masked_fill(~kept[..., None], lowest).log_softmax(1)
        right = 0.5 * (over_contexts + over_tokens).diagonal(dim1=1, dim2=2)
        has_terms = mask.any(1) & other_mask.any(1)
        counted = mask & has_terms[:, None]
        total = -(at_least_float32(weights).detach() * right.masked_fill(~counted, 0.0)).sum()
        return mean_over_ranks(total, has_terms.sum().to(total.dtype))


@torch.no_grad()
def clipped_attention(
    attention: Float[torch.Tensor, "b n"], counted: Bool[torch.Tensor, "b n"], low: float = 0.1, high: float = 0.9
) -> Float[torch.Tensor, "b n"]:
    """Return attention clipped to its own quantiles in each sample and divided by its sum; 0 where not counted.

    Quantiles are interpolated linearly. MGCA counts the words with an attention other than 0, and all patches.
    """
    with torch.autocast(attention.device.type, enabled=False):
        counted_alone = at_least_float32(attention).masked_fill(~counted, torch.nan)
        if not counted_alone.numel():
            return counted_alone
        levels = counted_alone.new_tensor([low, high])
        bounds = counted_alone.nanquantile(levels, dim=1, keepdim=True)
        clipped = counted_alone.clamp(bounds[0], bounds[1]).nan_to_num(0.0)
        return clipped / clipped.sum(1, keepdim=True).clamp_min(torch.finfo(clipped.dtype).tiny)
