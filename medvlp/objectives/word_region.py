"""GLoRIA's contrast of words with the image regions that they attend to (Huang et al., ICCV 2021).

Guarantee: value and gradient as in the official code, for all pairs of a batch; pads are in no softmax and no sum.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.objectives.gather import gather_with_gradient, world_size
from medvlp.objectives.pairs import PAIRS_AT_ONCE, diagonal_ce, gather_tokens, pairwise
from medvlp.objectives.terms import at_least_float32, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]

EPS = 1e-8
"""Smallest product of lengths that a cosine is divided by, as in the official code."""


def word_attention(
    regions: Float[torch.Tensor, "i p d"],
    words: Float[torch.Tensor, "t l d"],
    mask: Bool[torch.Tensor, "t l"],
    sharpness: float,
) -> Float[torch.Tensor, "i t l p"]:
    """Return the regions that each word of each text attends to in each image: a softmax over the regions.

    The products of words and regions first pass a softmax over the words, so that words compete for a region, then
    times `sharpness` one over the regions (section 3.3 of the paper, as the official code has it).
    """
    products = torch.einsum("ipd,tld->itlp", regions, words)
    return _attention(products, mask, sharpness)


def word_scores(
    regions: Float[torch.Tensor, "i p d"],
    words: Float[torch.Tensor, "t l d"],
    mask: Bool[torch.Tensor, "t l"],
    sharpness: float = 4.0,
    match_scale: float = 5.0,
    reduce: Literal["sum", "mean", "max"] = "sum",
) -> Float[torch.Tensor, "i t"]:
    """Return how well each image shows the words of each text.

    With `c_w` the mean of the regions that word w attends to, and `u_w = match_scale * cos(w, c_w)`, the score is the
    logarithm of the sum or mean over words of `exp(u_w)` (training), or the maximum of `u_w` (inference). A text
    without words scores 0.

    Args:
        regions: Projected regions of images, of any length.
        words: Words of texts, of any length.
        mask: True at real words.
        sharpness: Factor before the softmax over regions.
        match_scale: Factor of the cosines.
        reduce: sum, mean or max over words.
    """
    words = words.masked_fill(~mask[..., None], 0.0)
    products = torch.einsum("ipd,tld->itlp", regions, words)
    attention = _attention(products, mask, sharpness)
    # Products and lengths of the contexts come from those of the regions: contexts [i t l d] are never made.
    gram = regions @ regions.transpose(1, 2)
    lengths = ((attention.flatten(1, 2) @ gram).unflatten(1, attention.shape[1:3]) * attention).sum(3)
    lengths = lengths.clamp_min(EPS**2).sqrt() * words.square().sum(2).clamp_min(EPS**2).sqrt()
    matches = match_scale * (products * attention).sum(3) / lengths.clamp_min(EPS)
    some = mask | ~mask.any(1, keepdim=True)
    matches = matches.masked_fill(~some, -torch.inf)
    if reduce == "max":
        scores = matches.amax(2)
    else:
        scores = matches.logsumexp(2) - (some.sum(1).to(matches.dtype).log() if reduce == "mean" else 0.0)
    return scores.masked_fill(~mask.any(1), 0.0)


def word_region_nce(
    regions: Float[torch.Tensor, "b p d"],
    words: Float[torch.Tensor, "b l d"],
    mask: Bool[torch.Tensor, "b l"],
    scale: float = 10.0,
    sharpness: float = 4.0,
    match_scale: float = 5.0,
    reduce: Literal["sum", "mean"] = "sum",
    at_once: int = PAIRS_AT_ONCE,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of `scale * word_scores`, image to text plus text to image (GLoRIA, equations 8 and 9).

    Args:
        regions: Projected regions; as many per image on every rank.
        words: Words of the text of each image; in GLoRIA the class token is one.
        mask: True at real words; a pair without any is left out.
        scale: Factor of the scores.
        sharpness: See `word_scores`.
        match_scale: See `word_scores`.
        reduce: See `word_scores`.
        at_once: Pairs of image and text scored at a time.
    """
    score = partial(word_scores, sharpness=sharpness, match_scale=match_scale, reduce=reduce)
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = at_least_float32(regions), at_least_float32(words)
        everyones = gather_tokens(words, mask)
        by_image = scale * pairwise(score, (regions,), everyones, at_once)
        if world_size() == 1:
            by_text = by_image.T
        else:
            images = gather_with_gradient(regions)
            by_text = scale * pairwise(score, (images,), (words, mask), at_once).T
        value, count = diagonal_ce(by_image, by_text, mask.any(1))
    return 2 * value, count


def unit_word_region_nce(
    regions: Float[torch.Tensor, "b p d"],
    words: Float[torch.Tensor, "b l d"],
    mask: Bool[torch.Tensor, "b l"],
    scale: float = 10.0,
    sharpness: float = 4.0,
    match_scale: float = 5.0,
    reduce: Literal["sum", "mean"] = "sum",
) -> tuple[Scalar, Scalar]:
    """`word_region_nce` of unit vectors, the mean of both directions (VELVET-Med, arXiv 2508.12108, official code).

    Under `sum` the score of a long text is larger by about the logarithm of its number of words, so that long texts
    attract every image; the official code has it, `mean` does not.
    """
    with torch.autocast(regions.device.type, enabled=False):
        value, count = word_region_nce(unit(regions), unit(words), mask, scale, sharpness, match_scale, reduce)
    return 0.5 * value, count


def prompt_similarity(
    image: Float[torch.Tensor, "i d"],
    regions: Float[torch.Tensor, "i p d"],
    prompts: Float[torch.Tensor, "t d"],
    words: Float[torch.Tensor, "t l d"],
    mask: Bool[torch.Tensor, "t l"],
    sharpness: float = 4.0,
    match_scale: float = 5.0,
) -> Float[torch.Tensor, "i t"]:
    """Return GLoRIA's zero-shot similarity: the mean of the global cosine and of the best word's `match_scale * cos`.

    Args:
        image: Projected images, of any length.
        regions: Their projected regions.
        prompts: Vectors of the prompts.
        words: Their words, without the class token.
        mask: True at real words.
        sharpness: See `word_scores`.
        match_scale: See `word_scores`; the official code leaves it in, so the local part lies in ±match_scale.
    """
    score = partial(word_scores, sharpness=sharpness, match_scale=match_scale, reduce="max")
    regions, words = at_least_float32(regions), at_least_float32(words)
    local = pairwise(score, (regions,), (words, mask))
    return (unit(image) @ unit(prompts).T + local) / 2


def best_of_class(
    similarity: Float[torch.Tensor, "i t"], prompt_class: Int[torch.Tensor, " t"]
) -> Float[torch.Tensor, "i k"]:
    """Return the maximum over the prompts of each class 0 to k-1; every class needs a prompt."""
    classes = int(prompt_class.max()) + 1
    return torch.stack([similarity[:, prompt_class == k].amax(1) for k in range(classes)], dim=1)


def standardised(scores: Float[torch.Tensor, "i k"]) -> Float[torch.Tensor, "i k"]:
    """Return each column less its mean over the images, divided by its population deviation; one image stays as it is.

    GLoRIA does this over the images evaluated together: a score then depends on its neighbours. A column without
    deviation becomes 0.
    """
    if len(scores) < 2:
        return scores
    deviation = scores.std(0, correction=0)
    return torch.where(deviation > 0, (scores - scores.mean(0)) / deviation, 0.0)


def _attention(products: torch.Tensor, mask: torch.Tensor, sharpness: float) -> torch.Tensor:
    over_words = products.masked_fill(~mask[None, :, :, None], torch.finfo(products.dtype).min).softmax(2)
    return (sharpness * over_words).softmax(3)
