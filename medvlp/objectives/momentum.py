"""Contrast against a teacher whose weights trail the student's: ALBEF's image-text term, TCL's local terms.

Guarantee: no gradient reaches the teacher's features; padded and empty local features are neither positives nor
negatives; otherwise as in `contrastive`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.contrastive import queue_nce
from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank
from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]

FAR = -1e9
"""Stands for a logit that takes no part: finite, so that a row of nothing else has no NaN gradient."""


def momentum_itc(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "b d"],
    image_teacher: Float[torch.Tensor, "b d"],
    text_teacher: Float[torch.Tensor, "b d"],
    image_queue: Float[torch.Tensor, "q d"],
    text_queue: Float[torch.Tensor, "q d"],
    scale: Scalar,
    alpha: float,
) -> tuple[Scalar, Scalar]:
    """Mean of image to text and text to image, against the teacher's features of the batch and the queue.

    ALBEF (arXiv 2107.07651, equations 1, 2 and 6). All features may have any length.

    Args:
        image: The student's images.
        text: The student's texts.
        image_teacher: The teacher's images.
        text_teacher: The teacher's texts.
        image_queue: Earlier images of the teacher.
        text_queue: Earlier texts of the teacher.
        scale: Factor of the cosines, 1/T.
        alpha: Share of the teacher's soft targets.
    """
    to_text, number = queue_nce(image, text_teacher, text_queue, scale, image_teacher, alpha)
    to_image, others = queue_nce(text, image_teacher, image_queue, scale, text_teacher, alpha)
    return 0.5 * (to_text + to_image), number + others


def local_nce(
    query: Float[torch.Tensor, "b d"],
    local: Float[torch.Tensor, "b m d"],
    scale: Scalar,
    mask: Bool[torch.Tensor, "b m"] | None = None,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each sample's vector with each of its own local vectors against those of all other samples.

    TCL (arXiv 2202.10401, local mutual information): the other local vectors of the same sample are no negatives; the
    mean over a sample's local vectors, then over samples. A sample without any is left out, and not counted.

    Args:
        query: The student's vectors, of any length.
        local: The teacher's local vectors, taken as they are (TCL does not bring window means to unit length again).
        scale: Factor of the products, 1/T.
        mask: True at local vectors that count; None is all.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, scale, local = unit(query), at_least_float32(scale), at_least_float32(local.detach())
        mask = torch.ones(local.shape[:2], dtype=torch.bool, device=local.device) if mask is None else mask.bool()
        shape = gather_counts([len(query), local.shape[1]], query.device)
        counts, longest = [row[0] for row in shape], max(row[1] for row in shape)
        padding = longest - local.shape[1]
        everyone = gather_with_gradient(functional.pad(local, (0, 0, 0, padding)), counts)
        counted = gather_with_gradient(functional.pad(mask, (0, padding)), counts)
        offset = sum(counts[: rank()])
        own = torch.arange(offset, offset + len(query), device=query.device)
        logits = scale * torch.einsum("bd,nmd->bnm", query, everyone)
        others = counted.expand_as(logits).scatter(1, own[:, None, None].expand(-1, 1, longest), False)
        negative = logits.masked_fill(~others, FAR).flatten(1).logsumexp(1) if sum(counts) else logits.sum((1, 2))
        positive = logits.gather(1, own[:, None, None].expand(-1, 1, longest))[:, 0, : local.shape[1]]
        terms = functional.softplus(negative[:, None] - positive) * mask
        number = mask.sum(1)
        return mean_over_ranks((terms.sum(1) / number.clamp_min(1)).sum(), (number > 0).sum().float())


def window_means(
    patches: Float[torch.Tensor, "b p d"], grid: tuple[int, ...], window: int | None = None
) -> Float[torch.Tensor, "b m d"]:
    """Return the means of unit patch vectors over the whole windows of a grid, row-major, not of unit length.

    Args:
        patches: Of any length, row-major.
        grid: Rows and columns of patches.
        window: Side of a window in patches; None is TCL's, the root of the grid's side rounded down (16 x 16 patches
            become 4 x 4). Rows and columns beyond the last whole window are left out.
    """
    side = window or math.isqrt(min(grid))
    maps = unit(patches).transpose(1, 2).unflatten(2, grid)
    return functional.avg_pool2d(maps, side).flatten(2).transpose(1, 2)
