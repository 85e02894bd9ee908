"""Losses on ternary matrices place × finding: existence, prototype and position contrast, intersection.

Guarantee: 1 is present, 0 absent, anything else is left out of every term. Logits are computed in at least float32 also
under autocast; each function returns `(value, count)`, 0 with count 0 where nothing is labelled. On several ranks the
mean of the values is that of one process with the whole batch. Nothing is drawn inside a loss: the draws are inputs.

MedKLIP: Wu et al. (arXiv 2301.02228). MeDSLIP: Fan et al. (arXiv 2403.10635).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medvlp.objectives.terms import Scalar

NO_CANDIDATE = -1
"""In the place of a drawn index where there is no such candidate."""


def finding_labels(matrix: Int[torch.Tensor, "b a f"]) -> Int[torch.Tensor, "b f"]:
    """Return each finding's label: 1 where it is present anywhere, else 0 where it is denied anywhere, else -1."""
    return matrix.amax(1)


def anatomy_labels(matrix: Int[torch.Tensor, "b a f"]) -> Int[torch.Tensor, "b a"]:
    """Return each place's label: 1 where any finding is present there, else 0 where any is denied, else -1."""
    return matrix.amax(2)


def existence_ce(logits: Float[torch.Tensor, "b q 2"], labels: Int[torch.Tensor, "b q"]) -> tuple[Scalar, Scalar]:
    """Cross-entropy of two logits (absent, present) over the queries labelled 0 or 1.

    MedKLIP, equation 5; MeDSLIP's existence loss of one stream.
    """
    with torch.autocast(logits.device.type, enabled=False):
        known = (labels == 0) | (labels == 1)
        targets = labels.clamp(0, 1).long()
        terms = functional.cross_entropy(at_least_float32(logits).flatten(0, 1), targets.flatten(), reduction="none")
        return _mean(terms, known.flatten())


def existence_bce(logits: Float[torch.Tensor, "b *q"], labels: Int[torch.Tensor, "b *q"]) -> tuple[Scalar, Scalar]:
    """Binary cross-entropy over what is labelled 0 or 1."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        known = (labels == 0) | (labels == 1)
        targets = labels.clamp(0, 1).to(logits.dtype)
        return _mean(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none"), known)


def intersection_bce(
    anatomy: Float[torch.Tensor, "b a d"],
    finding: Float[torch.Tensor, "b f d"],
    matrix: Int[torch.Tensor, "b a f"],
) -> tuple[Scalar, Scalar]:
    """Binary cross-entropy of the dot product of a place's and a finding's feature against their cell.

    MeDSLIP's intra-image contrast (ICL): the products are not scaled, cells that are not mentioned are left out.
    """
    with torch.autocast(anatomy.device.type, enabled=False):
        logits = at_least_float32(anatomy) @ at_least_float32(finding).transpose(1, 2)
        return existence_bce(logits, matrix)


def prototype_contrast(
    projected: Float[torch.Tensor, "b q d"],
    book: Float[torch.Tensor, "c d"],
    positive: Bool[torch.Tensor, "b q c"],
    others: Int[torch.Tensor, "b q n"],
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each present query towards the mean of its positive book rows, against some other rows.

    MeDSLIP's prototype contrast (ProtoCL): the logits are dot products of raw book rows, neither normalised nor scaled.
    The product with a mean of rows is the mean of the products, so no prototype is ever stored.

    Args:
        projected: Features of the queries in the book's space.
        book: Embeddings of the other stream's texts; a constant.
        positive: Book rows that are present with the query; a query without any is left out.
        others: Rows to tell the prototype from; -1 is none.
    """
    with torch.autocast(projected.device.type, enabled=False):
        products = at_least_float32(projected) @ at_least_float32(book).T
        weights = positive.to(products.dtype)
        number = weights.sum(2)
        prototypes = (products * weights).sum(2) / number.clamp_min(1.0)
        return _first_of(prototypes, products, others, number > 0)


def position_contrast(
    projected: Float[torch.Tensor, "b q d"],
    book: Float[torch.Tensor, "c d"],
    positive: Int[torch.Tensor, "b q"],
    others: Int[torch.Tensor, "b q n"],
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each present query towards one of its positive book rows, against some other rows.

    MedKLIP, equation 6 (position prediction); `prototype_contrast` differs only in averaging all positives.

    Args:
        projected: Features of the queries in the book's space.
        book: Embeddings of the places; a constant.
        positive: One positive row of each query, drawn; -1 leaves the query out.
        others: Rows to tell it from; -1 is none.
    """
    with torch.autocast(projected.device.type, enabled=False):
        products = at_least_float32(projected) @ at_least_float32(book).T
        own = products.gather(2, positive.clamp_min(0)[..., None]).squeeze(2)
        return _first_of(own, products, others, positive != NO_CANDIDATE)


def draw_others(positive: Bool[torch.Tensor, "b q c"], number: int) -> Int[torch.Tensor, "b q n"]:
    """Draw rows that are not positive, without replacement; -1 where there are fewer than `number`.

    The draw is that of torch's global generator on the tensor's device.
    """
    keys = torch.rand(positive.shape, device=positive.device).masked_fill(positive, -1.0)
    drawn, rows = keys.topk(min(number, positive.shape[2]), dim=2)
    return rows.masked_fill(drawn < 0, NO_CANDIDATE)


def draw_one(positive: Bool[torch.Tensor, "b q c"]) -> Int[torch.Tensor, "b q"]:
    """Draw one positive row of each query; -1 where it has none."""
    return draw_others(~positive, 1).squeeze(2)


def _first_of(
    first: Float[torch.Tensor, "b q"],
    products: Float[torch.Tensor, "b q c"],
    others: Int[torch.Tensor, "b q n"],
    known: Bool[torch.Tensor, "b q"],
) -> tuple[Scalar, Scalar]:
    """Return the mean cross-entropy of `first` against the products named by `others`."""
    rest = products.gather(2, others.clamp_min(0)).masked_fill(others == NO_CANDIDATE, -torch.inf)
    logits = torch.cat([first[..., None], rest], dim=2)
    return _mean(-logits.log_softmax(2)[..., 0], known)


def _mean(terms: Float[torch.Tensor, " *n"], known: Bool[torch.Tensor, " *n"]) -> tuple[Scalar, Scalar]:
    total = torch.where(known, terms, 0.0).sum()
    return mean_over_ranks(total, known.sum().to(torch.float32))
