"""Alignment without negatives, and orthogonality of features (M-FLAG, MICCAI 2023, arXiv 2307.08347).

Guarantee: sums and squares are computed in at least float32 also under autocast, as products of un-normalised features
overflow half precision. On several ranks the mean of the values is that of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[torch.Tensor, ""]


def alignment(image: Float[torch.Tensor, "b d"], text: Float[torch.Tensor, "b d"]) -> tuple[Scalar, Scalar]:
    """Mean of `4 - 4 cos` over pairs, in the official code a sum of two equal halves; row i belongs to row i."""
    if len(image) != len(text):
        raise ValueError(f"alignment needs pairs, got {len(image)} images and {len(text)} texts")
    with torch.autocast(image.device.type, enabled=False):
        total = (4 - 4 * (unit(image) * unit(text)).sum(1)).sum()
        return mean_over_ranks(total, count_of(len(image), image))


def orthogonality(
    features: Float[torch.Tensor, "b d"], off_diagonal_weight: float = 0.0051, divisor: float | None = None
) -> tuple[Scalar, Scalar]:
    """Half the squared distance of the features' second moments from the identity, less weight off the diagonal.

    `C = Z'Z / divisor; 0.5 [sum_i (C_ii - 1)^2 + off_diagonal_weight * sum_{i != j} C_ij^2]`. `count` is the number of
    local rows.

    Args:
        features: Z, neither centred nor of unit length.
        off_diagonal_weight: Weight of the squares off the diagonal.
        divisor: None is the number of rows over all ranks.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        everyone = gather_with_gradient(features)
        if len(everyone) == 0:
            return nothing(features)
        moments = everyone.T @ everyone / (divisor or len(everyone))
        diagonal = moments.diagonal()
        on = (diagonal - 1).square().sum()
        off = moments.square().sum() - diagonal.square().sum()
        return 0.5 * (on + off_diagonal_weight * off), count_of(len(features), features)
