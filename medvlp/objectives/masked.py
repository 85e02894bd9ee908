"""Masked modelling: cross-entropy of hidden tokens, squared error of hidden patches.

Guarantee: only what was hidden counts; each function computes in at least float32 also under autocast and returns
`(value, count)`, 0 with count 0 where nothing was hidden. On several ranks the mean of the values is that of one
process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]

VARIANCE_FLOOR = 1e-6


def mlm(
    logits: Float[torch.Tensor, "n v"],
    ids: Int[torch.Tensor, " n"],
    teacher: Float[torch.Tensor, "n v"] | None = None,
    alpha: float = 0.0,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of the tokens that were hidden (BERT, arXiv 1810.04805).

    With a teacher the targets are `alpha * softmax(teacher) + (1 - alpha) * one-hot` (ALBEF, arXiv 2107.07651,
    equation 7).

    Args:
        logits: Of the hidden tokens of all texts.
        ids: The tokens that stood there.
        teacher: The teacher's logits of the same tokens; no gradient.
        alpha: Share of the teacher.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        total = functional.cross_entropy(logits, ids, reduction="sum")
        if alpha and teacher is not None:
            soft = at_least_float32(teacher.detach()).softmax(1)
            total = (1 - alpha) * total + alpha * functional.cross_entropy(logits, soft, reduction="sum")
        return mean_over_ranks(total, count_of(len(ids), logits))


def mim(
    prediction: Float[torch.Tensor, "b p q"],
    image: Float[torch.Tensor, "b c *s"],
    hidden: Bool[torch.Tensor, "b p"],
    patch: int | Sequence[int],
    normalised: bool = True,
) -> tuple[Scalar, Scalar]:
    """Mean squared error of hidden patches (MAE, arXiv 2111.06377; M3AE, and MRM with patches of a larger image).

    Args:
        prediction: Of every patch, row-major over the grid.
        image: What the patches are cut from: an image or a volume.
        hidden: 1 at the patches that count.
        patch: Side of a patch of `image`, one for all axes or one for each.
        normalised: Targets have mean 0 and (unbiased) variance 1 in each patch.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        target = patches_of(at_least_float32(image), patch)
        if normalised:
            spread = (target.var(-1, keepdim=True) + VARIANCE_FLOOR).sqrt()
            target = (target - target.mean(-1, keepdim=True)) / spread
        error = (at_least_float32(prediction) - target).square().mean(-1)
        weight = hidden.to(error.dtype)
        return mean_over_ranks((error * weight).sum(), weight.sum())


def patches_of(image: Float[torch.Tensor, "b c *s"], patch: int | Sequence[int]) -> Float[torch.Tensor, "b p q"]:
    """Return the patches of an image or volume, row-major over the grid; in a patch its axes in order, then channel.

    What is left over at the end of an axis belongs to no patch.
    """
    axes = image.ndim - 2
    sides = (patch,) * axes if isinstance(patch, int) else tuple(patch)
    grid = [length // side for length, side in zip(image.shape[2:], sides, strict=True)]
    for axis, (number, side) in enumerate(zip(grid, sides, strict=True), 2):
        image = image.narrow(axis, 0, number * side)
    split = image.reshape(*image.shape[:2], *(part for pair in zip(grid, sides, strict=True) for part in pair))
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    return split.permute(order).flatten(1, axes).flatten(2)
