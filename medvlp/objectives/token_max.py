"""FILIP's contrast: each token is matched with the best token of the other side (Yao et al., arXiv 2111.07783).

Guarantee: pads are neither matched nor matched with; over ranks as one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.pairs import PAIRS_AT_ONCE, diagonal_ce, gather_tokens, pairwise
from medvlp.objectives.terms import at_least_float32, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]
    Tokens = Float[torch.Tensor, "n l d"]
    Mask = Bool[torch.Tensor, "n l"]


def mean_of_best(
    tokens: Float[torch.Tensor, "n l d"],
    mask: Bool[torch.Tensor, "n l"],
    others: Float[torch.Tensor, "m k d"],
    other_mask: Bool[torch.Tensor, "m k"],
) -> Float[torch.Tensor, "n m"]:
    """Return the mean over a sample's tokens of the largest product with a token of the other sample (equations 4, 5).

    A sample without tokens scores 0.
    """
    products = torch.einsum("nld,mkd->nmlk", tokens, others)
    best = products.masked_fill(~other_mask[None, :, None], torch.finfo(products.dtype).min).amax(3)
    best = best.masked_fill(~mask[:, None], 0.0).sum(2) / mask.sum(1).clamp_min(1)[:, None]
    return best.masked_fill(~other_mask.any(1), 0.0)


def mean_cosines(
    tokens: Float[torch.Tensor, "n p d"],
    others: Float[torch.Tensor, "m k d"],
    other_mask: Bool[torch.Tensor, "m k"],
) -> Float[torch.Tensor, "n m p"]:
    """Return the mean cosine of each token of each sample with the tokens of each other sample, 0 where it has none."""
    means = unit(others).masked_fill(~other_mask[..., None], 0.0).sum(1) / other_mask.sum(1).clamp_min(1)[:, None]
    return torch.einsum("npd,md->nmp", unit(tokens), means)


def token_max_nce(
    image: Float[torch.Tensor, "b p d"],
    text: Float[torch.Tensor, "b l d"],
    mask: Bool[torch.Tensor, "b l"],
    scale: Scalar,
    top_k: int = 0,
    at_once: int = PAIRS_AT_ONCE,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of `scale * mean_of_best`, the mean of image to text and text to image.

    Args:
        image: Projected patches, of any length; as many per image on every rank.
        text: Projected tokens, of any length; row i belongs to image i.
        mask: True at real tokens; a pair without any is left out. All True is the official code, which has no mask.
        scale: Factor of the cosines.
        top_k: Only the `top_k` patches (tokens) of a sample with the largest summed cosine to all tokens (patches) of
            its own partner may be matched with, as in the official code; 0 is all of them, as in the paper.
        at_once: Pairs of image and text scored at a time.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = unit(image), unit(text), at_least_float32(scale)
        everywhere = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        patches, patch_mask, words, word_mask = image, everywhere, text, mask
        if top_k:
            products = (image @ text.transpose(1, 2)).detach().masked_fill(~mask[:, None], 0.0)
            patches, patch_mask = _best(image, everywhere, products.sum(2), top_k)
            words, word_mask = _best(text, mask, products.sum(1), top_k)
        by_image = pairwise(mean_of_best, (image, everywhere), gather_tokens(words, word_mask), at_once)
        by_text = pairwise(mean_of_best, (text, mask), gather_tokens(patches, patch_mask), at_once)
        return diagonal_ce(scale * by_image, scale * by_text, mask.any(1))


def _best(tokens: Tokens, mask: Mask, merit: Float[torch.Tensor, "n l"], top_k: int) -> tuple[Tokens, Mask]:
    """Return the real tokens with the largest merit."""
    chosen = merit.masked_fill(~mask, -torch.inf).topk(min(top_k, tokens.shape[1]), dim=1).indices
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2])), mask.gather(1, chosen)
