"""Which region of an image shows which attribute (ViLLA, ICCV 2023, arXiv 2308.11194).

Guarantee: only images known to lack an attribute are its negatives; computed in at least float32 also under autocast;
on several ranks the mean of the values is that of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]

FAR = -1e9
"""Stands for a score that takes no part: finite, so that a column of nothing else has no NaN gradient."""


def region_scores(
    region: Float[torch.Tensor, "r a d"], attribute: Float[torch.Tensor, "k d"]
) -> Float[torch.Tensor, "r k"]:
    """Return the product of each region, brought to unit length, with each attribute, as given.

    Args:
        region: As projected by the head of each attribute (`a` = `k`), or by one head for all (`a` = 1).
        attribute: Unit vectors.
    """
    with torch.autocast(region.device.type, enabled=False):
        return (unit(region) * at_least_float32(attribute)).sum(-1)


def image_scores(
    scores: Float[torch.Tensor, "r k"], owner: Int[torch.Tensor, " r"], images: int
) -> Float[torch.Tensor, "b k"]:
    """Return the score of each image's best region; `FAR` for an image without a region.

    Args:
        scores: Of regions.
        owner: Image of each region.
        images: Number of images, `b`.
    """
    index = owner[:, None].expand_as(scores)
    start = scores.new_full((images, scores.shape[1]), FAR)
    return start.scatter_reduce(0, index, scores, "amax", include_self=False)


def attribute_nce(
    scores: Float[torch.Tensor, "b k"],
    present: Bool[torch.Tensor, "b k"],
    lacking: Bool[torch.Tensor, "b k"],
    temperature: float,
    legacy_mask: bool = False,
) -> tuple[Scalar, Scalar]:
    """Contrast of each image that has an attribute with the images that lack it.

    ViLLA (stage 1): per positive (i, a), with `s` the scores over T, `-log e^{s_ia} / (e^{s_ia} + N_a)`, where `N_a` is
    the sum of `e^{s_ja}` over the images that lack a; the mean over positives, which are what `count` counts.

    Args:
        scores: Of each image's best region.
        present: Images that have the attribute.
        lacking: Images that lack it; an image may be neither.
        temperature: T.
        legacy_mask: As the released code: the mask multiplies the score within the exponential, so that every image
            that does not lack a adds 1 to `N_a`, also image i.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logits = at_least_float32(scores) / temperature
        seen = scores > FAR
        present, lacking = present & seen, lacking & seen
        everyone, absent = gather_with_gradient(logits), gather_with_gradient(lacking)
        hidden = everyone.masked_fill(~absent, 0.0 if legacy_mask else FAR)
        negative = hidden.logsumexp(0) if len(hidden) else hidden.sum(0)
        terms = functional.softplus(negative - logits) * present
        return mean_over_ranks(terms.sum(), present.sum().float())


def regions_of_attributes(
    scores: Float[torch.Tensor, "r k"],
    owner: Int[torch.Tensor, " r"],
    present: Bool[torch.Tensor, "b k"],
    margin: float,
) -> Bool[torch.Tensor, "r k"]:
    """Return which attributes each region shows: of those its image has, where it scores within `margin` of the best.

    Args:
        scores: Of regions, before any temperature.
        owner: Image of each region.
        present: Images that have the attribute.
        margin: ViLLA has 0.2.
    """
    best = image_scores(scores, owner, len(present))
    return present[owner] & (scores > best[owner] - margin)
