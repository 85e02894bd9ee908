"""Which entities an image or a text is about, as independent questions.

Guarantee: an entity that is not named counts as absent, as in ARL; computed in at least float32 also under autocast;
`(value, count)` with 0 and 0 where there is nothing to ask. On several ranks the mean of the values is that of one
process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Scalar = Float[torch.Tensor, ""]


def entity_bce(
    vectors: Float[torch.Tensor, "b d"], entities: Float[torch.Tensor, "n d"], labels: Float[torch.Tensor, "b n"]
) -> tuple[Scalar, Scalar]:
    """Binary cross-entropy of `vectors . entities`, the mean over samples and entities (ARL, ACM MM 2022, eq. 4 to 6).

    Args:
        vectors: Of images or of texts.
        entities: Of all entities, the same on every rank.
        labels: 1 for the entities of the sample, else 0.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        logits = at_least_float32(vectors) @ at_least_float32(entities).T
        total = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return mean_over_ranks(total, count_of(logits.numel(), logits))


def named(concepts: Int[torch.Tensor, "b s"], number: int) -> Float[torch.Tensor, "b n"]:
    """Return 1 at the rows that each text names; -1 names nothing."""
    counts = torch.zeros(len(concepts), number + 1, device=concepts.device)
    counts.scatter_(1, torch.where(concepts < 0, number, concepts), 1.0)
    return counts[:, :number]
