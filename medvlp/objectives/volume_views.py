"""What views of one volume teach without any text: which belong together, how they were turned, what was cut out.

Guarantee: each function computes in at least float32 also under autocast and returns `(value, count)`; on several ranks
the mean of the values is that of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank
from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Scalar = Float[torch.Tensor, ""]


def nt_xent(
    first: Float[torch.Tensor, "b d"], second: Float[torch.Tensor, "b d"], scale: Scalar
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each view with the other view of its sample, over all views of the batch but itself.

    SimCLR (arXiv 2002.05709, equation 1), as VELVET-Med has it on crops of a volume; the mean over both views. A single
    sample has no negatives and costs 0.

    Args:
        first: First views, of any length.
        second: Second views of the same samples.
        scale: Factor of the cosines, 1/T.
    """
    if len(first) != len(second):
        raise ValueError(f"nt_xent needs pairs, got {len(first)} and {len(second)} views")
    with torch.autocast(first.device.type, enabled=False):
        first, second, scale = unit(first), unit(second), at_least_float32(scale)
        counts = [row[0] for row in gather_counts([len(first)], first.device)]
        total, offset = sum(counts), sum(counts[: rank()])
        if total == 0:
            return nothing(first, second, scale)
        everyone = torch.cat([gather_with_gradient(view, counts) for view in (first, second)])
        rows = torch.arange(offset, offset + len(first), device=first.device)
        own, other = torch.cat([rows, rows + total]), torch.cat([rows + total, rows])
        logits = scale * (torch.cat([first, second]) @ everyone.T)
        logits = logits.scatter(1, own[:, None], torch.finfo(logits.dtype).min)
        return mean_over_ranks(functional.cross_entropy(logits, other, reduction="sum"), count_of(len(own), first))


def turned(
    volumes: Float[torch.Tensor, "b c d h w"], turns: Int[torch.Tensor, " b"], axes: tuple[int, int] = (-2, -1)
) -> Float[torch.Tensor, "b c d h w"]:
    """Return each volume turned by its number of quarter turns, in the direction of `numpy.rot90`.

    Args:
        volumes: Volumes.
        turns: 0 to 3 of each.
        axes: Two axes of equal length, counted from the end: from the first to the second.
    """
    made = [torch.rot90(volume, turn, axes) for volume, turn in zip(volumes, turns.tolist(), strict=True)]
    return torch.stack(made) if made else volumes


def turn_ce(logits: Float[torch.Tensor, "n 4"], turns: Int[torch.Tensor, " n"]) -> tuple[Scalar, Scalar]:
    """Cross-entropy of the number of quarter turns (arXiv 1803.07728)."""
    with torch.autocast(logits.device.type, enabled=False):
        total = functional.cross_entropy(at_least_float32(logits), turns, reduction="sum")
        return mean_over_ranks(total, count_of(len(logits), logits))


def inpainting_l1(
    prediction: Float[torch.Tensor, "b c d h w"], volumes: Float[torch.Tensor, "b c d h w"]
) -> tuple[Scalar, Scalar]:
    """Mean absolute error of all voxels, those that were shown among them (Swin UNETR, arXiv 2111.14791)."""
    with torch.autocast(prediction.device.type, enabled=False):
        error = (at_least_float32(prediction) - at_least_float32(volumes)).abs().flatten(1).mean(1)
        return mean_over_ranks(error.sum(), count_of(len(error), error))
