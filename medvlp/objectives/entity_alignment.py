"""Alignment of patches with the entities that an image shows: each present entity against all others.

Guarantee: computed in at least float32 also under autocast; `(value, count)` with 0 and 0 where no entity is present.
On several ranks the mean of the values is that of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]


def entity_patch_nce(
    patches: Float[torch.Tensor, "b p d"],
    entities: Float[torch.Tensor, "e d"],
    present: Bool[torch.Tensor, "b e"],
    scale: Scalar,
    sharpness: float = 10.0,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of the patches that an entity attends to against all entities that are not present beside it.

    For entity e of image i: weights `softmax_p(sharpness * cos(patch_p, e))`, their sum of unit patches brought to unit
    length, then `-log softmax` of its scaled cosines at e. Other entities of the same image are neither positive nor
    negative: they may lie in the same patches. A stand-in of ours for DeViDe's patch-text alignment (arXiv 2404.03618).

    Args:
        patches: Projected patches, of any length.
        entities: Projected texts of the entities, the same on every rank.
        present: Which entities an image shows.
        scale: Factor of the cosines.
        sharpness: Factor of the cosines in the weights.
    """
    with torch.autocast(patches.device.type, enabled=False):
        patches, entities, scale = unit(patches), unit(entities), at_least_float32(scale)
        weights = (sharpness * (patches @ entities.T)).softmax(1)
        pooled = unit(weights.transpose(1, 2) @ patches)
        logits = scale * (pooled @ entities.T)
        own = torch.eye(len(entities), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(present[:, None] & ~own, -torch.inf)
        terms = -logits.log_softmax(2).diagonal(dim1=1, dim2=2)
        return mean_over_ranks(torch.where(present, terms, 0.0).sum(), present.sum().to(torch.float32))
