"""KEEP's metric loss over semantic groups of images and texts, and its ranking of prompt classifiers.

Guarantee: everything is a log-sum-exp in at least float32, also under autocast, so that scales up to 100 neither
overflow nor meet the floors of the official sums. On several ranks the mean over ranks of the value, and DDP's mean
gradient, are those of one process with all groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank
from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]

Variant = Literal["hp-hn", "lhp-hn", "hp-lhn", "lhp-lhn"]
"""Which pairs count: the hardest positives or the least hard of each row's hardest (lhp); negatives likewise."""


def group_metric(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "t d"],
    related: Bool[torch.Tensor, "g all_g"],
    scale: Scalar,
    variant: Variant = "lhp-hn",
    unknown: Bool[torch.Tensor, " g"] | None = None,
) -> tuple[Scalar, Scalar]:
    """Pull the images and texts of a group together and push the groups apart; the mean of both directions.

    KEEP (as in its official code), for a group i and its blocks of cosines S:
    `-log P_i / (P_i + sum_j N_ij)` with, in the variant "lhp-hn",
    `P_i = sum_{r in i} 1 / sum_{c in i} exp(-s S_rc)` and `N_ij = sum_{r in i, c in j} exp(s S_rc)`.
    Between related groups S is set to -1.

    Args:
        image: Of any length; the rows of a group are neighbours, and all groups have `b / g` rows.
        text: Row i belongs to image i. Twice as many texts: the second half are further negatives of their own group,
            one term of the denominator of image to text in the variant "lhp-hn"; the other variants ignore them.
        related: Local groups against the groups of all ranks, in rank order; the group itself may be True or False.
        scale: Factor of the cosines.
        variant: See `Variant`.
        unknown: Groups of no known concept; their further texts count as cosine -1.

    Returns:
        Value, and twice the number of local groups; 0 and 0 where there is no second group.
    """
    groups, extra = len(related), len(text) == 2 * len(image)
    if groups and (len(image) % groups or len(text) not in (len(image), 2 * len(image))):
        raise ValueError(f"{groups} groups of equal size are not {len(image)} images and {len(text)} texts")
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = unit(image), unit(text), at_least_float32(scale)
        counts = gather_counts([groups, len(image)], image.device)
        offset, everyone = sum(row[0] for row in counts[: rank()]), sum(row[0] for row in counts)
        if related.shape[1:] != (everyone,) and groups:
            raise ValueError(f"`related` has {related.shape[1]} columns for {everyone} groups of all ranks")
        rows = [row[1] for row in counts]
        own = torch.arange(offset, offset + groups, device=image.device)
        paired = text[: len(image)]
        everyones_image, everyones_text = gather_with_gradient(image, rows), gather_with_gradient(paired, rows)
        if everyone == 0 or (everyone == 1 and not extra) or not groups:
            return mean_over_ranks(*nothing(image, text, scale, everyones_image, everyones_text))
        apart = related.clone()
        apart[torch.arange(groups, device=image.device), own] = False
        further = None
        if extra and variant == "lhp-hn":
            blocks = _blocks(image @ text[len(image) :].T, groups).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            further = torch.where(unknown[:, None, None], -1.0, blocks) if unknown is not None else blocks
        by_image = _direction(image @ everyones_text.T, apart, own, scale, variant, further)
        by_text = _direction(paired @ everyones_image.T, apart, own, scale, variant)
        total = by_image.sum() + by_text.sum()
        return mean_over_ranks(total, count_of(2 * groups, image))


def _direction(
    cosines: Float[torch.Tensor, "b c"],
    apart: Bool[torch.Tensor, "g all_g"],
    own: Int[torch.Tensor, " g"],
    scale: Scalar,
    variant: str,
    further: Float[torch.Tensor, "g m m"] | None = None,
) -> Float[torch.Tensor, " g"]:
    """Return the loss of each local group; `apart` are the pairs of groups whose cosines are set to -1."""
    groups, everyone = apart.shape
    blocks = _blocks(cosines, groups, everyone)
    blocks = scale * torch.where(apart[:, None, :, None], -1.0, blocks)
    positives, negatives = variant.split("-")
    inside = (-blocks[torch.arange(groups, device=own.device), :, own]).logsumexp(2)
    positive = (-inside).logsumexp(1) if positives == "lhp" else -inside.logsumexp(1)
    row = blocks.logsumexp(3)
    negative = -(-row).logsumexp(1) if negatives == "lhn" else row.logsumexp(1)
    terms = negative.scatter(1, own[:, None], -torch.inf)
    if further is not None:
        terms = torch.cat([terms, (scale * further).logsumexp((1, 2))[:, None]], dim=1)
    return functional.softplus(terms.logsumexp(1) - positive)


def _blocks(
    cosines: Float[torch.Tensor, "b c"], groups: int, everyone: int | None = None
) -> Float[torch.Tensor, "g m all_g n"]:
    return cosines.unflatten(1, (everyone or groups, -1)).unflatten(0, (groups, -1))


def prompt_scores(
    classifiers: Float[torch.Tensor, "n d k"], images: Float[torch.Tensor, "b d"]
) -> Float[torch.Tensor, " n"]:
    """Return how sure each prompt classifier is of images whose class nobody knows (KEEP's ranking, larger is better).

    The mean over images of `t1 - t2 - |t1 + t2 - 1|`, t1 and t2 the two largest cosines over the classes.

    Args:
        classifiers: Unit vectors of `k >= 2` classes, by `n` wordings.
        images: Of any length.
    """
    first, second = torch.einsum("bd,ndk->nbk", unit(images), classifiers).topk(2, dim=2).values.unbind(2)
    return (first - second - (first + second - 1).abs()).mean(1)


def best_prompts(
    classifiers: Float[torch.Tensor, "n d k"], images: Float[torch.Tensor, "b d"], top: int = 50
) -> Float[torch.Tensor, "d k"]:
    """Return the sum of the `top` classifiers of highest `prompt_scores`, each class of length 1; KEEP has 50."""
    best = prompt_scores(classifiers, images).topk(min(top, len(classifiers))).indices
    return functional.normalize(classifiers[best].sum(0), dim=0)


def best_pairs_probability(
    images: Float[torch.Tensor, "b d"],
    positives: Float[torch.Tensor, "p d"],
    negatives: Float[torch.Tensor, "n d"],
    scale: Scalar,
    top: int = 50,
) -> Float[torch.Tensor, " b"]:
    """Return the probability of the positive prompts, by the best of all pairs of a positive and a negative one.

    A softmax over both columns of `best_prompts`. What an image gets depends on the images beside it: with them the
    pairs are ranked.

    Args:
        images: Of any length.
        positives: Unit vectors of prompts that say the same.
        negatives: Unit vectors of prompts that say the opposite.
        scale: Factor of the cosines; KEEP's evaluation has 10, whatever was trained.
        top: Number of pairs that are summed.
    """
    pairs = torch.stack([positives.repeat_interleave(len(negatives), 0), negatives.repeat(len(positives), 1)], dim=2)
    return (scale * unit(images) @ best_prompts(pairs, images, top)).softmax(1)[:, 0]
