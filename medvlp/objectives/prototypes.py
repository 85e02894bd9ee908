"""Swapped prediction of prototype assignments: what two sides of one sample have in common above the instance.

Guarantee: assignments carry no gradient and are balanced over the samples of all ranks, unless asked for per rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.gather import all_reduce, world_size
from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[torch.Tensor, ""]


@torch.no_grad()
def sinkhorn(
    scores: Float[torch.Tensor, "b k"], epsilon: float = 0.05, iterations: int = 3, per_rank: bool = False
) -> Float[torch.Tensor, "b k"]:
    """Return soft assignments of samples to prototypes: each row sums to 1, the columns are nearly equal.

    From `exp(scores/epsilon)`, `iterations` times: columns to equal sums, then rows to equal sums (SwAV, arXiv
    2006.09882, section 3.1).

    Args:
        scores: Cosines of samples and prototypes.
        epsilon: Smoothness; larger is more even.
        iterations: Rounds.
        per_rank: Balance over the samples of this rank alone.
    """
    shared = world_size() > 1 and not per_rank
    scores = at_least_float32(scores) / epsilon
    # Not lightly's: that divides by the rows of its own rank, which is wrong where ranks hold unequal numbers of rows.
    # Only ratios within a column and within a row survive, so the largest may be taken out: nothing overflows.
    largest = scores.max() if scores.numel() else scores.new_full((), -torch.inf)
    if shared:
        all_reduce(largest, largest=True)
    mass = (scores - largest).exp()
    tiny = torch.finfo(mass.dtype).tiny
    for _ in range(iterations):
        of_prototype = mass.sum(0)
        if shared:
            all_reduce(of_prototype)
        mass = mass / of_prototype.clamp_min(tiny)
        mass = mass / mass.sum(1, keepdim=True).clamp_min(tiny)
    return mass


def swapped_prediction(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "b d"],
    prototypes: Float[torch.Tensor, "k d"],
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    per_rank: bool = False,
) -> tuple[Scalar, Scalar]:
    """Predict the assignment of each image from its text and the other way round; the mean of both.

    MGCA's cross-modal prototype alignment (arXiv 2210.06044, equations 7 to 10): cross-entropy of one side's
    assignment against `softmax(cos(other side, prototypes)/temperature)`. As in the official code the gradient of the
    prototypes is that of their unit vectors, not chained through the normalisation.

    Args:
        image: Projected images, of any length.
        text: Projected texts of the same samples, of any length.
        prototypes: Of any length but 0.
        temperature: Of the prediction.
        epsilon: See `sinkhorn`.
        iterations: See `sinkhorn`.
        per_rank: See `sinkhorn`.

    Returns:
        The value, and the number of local samples.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = unit(image), unit(text)
        prototypes = prototypes.to(image.dtype)
        directions = prototypes + (unit(prototypes) - prototypes).detach()
        of_image, of_text = image @ directions.T, text @ directions.T
        codes = [sinkhorn(scores, epsilon, iterations, per_rank) for scores in (of_image, of_text)]
        predicted = [(scores / temperature).log_softmax(1) for scores in (of_text, of_image)]
        total = -0.5 * torch.stack([(code * log).sum() for code, log in zip(codes, predicted, strict=True)]).sum()
        return mean_over_ranks(total, total.new_tensor(float(len(image))))
