"""Reading a study of several clips by retrieval, as EchoPrime does (arXiv 2410.09704): sections, neighbours, labels.

Guarantee: nothing is read where there is nothing to read from: a section to which no clip of the study contributes has
the zero vector, and what would be read from its neighbours is NaN, or no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.terms import unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

TIE_DECIMALS = 6
"""Of a cosine: smaller differences come from single precision."""


def section_vectors(
    clips: Float[torch.Tensor, "n d"], views: Int[torch.Tensor, " n"], weights: Float[torch.Tensor, "s v"]
) -> Float[torch.Tensor, "s d"]:
    """Return the vector of each section of the report: the sum of the clips, weighted by their views, of length 1.

    Args:
        clips: Projected clips of one study.
        views: View of each clip.
        weights: How much a clip of view v says about section s.
    """
    return unit(weights[:, views].to(clips.dtype) @ clips)


def nearest_labels(
    sections: Float[torch.Tensor, "q d"],
    candidates: Float[torch.Tensor, "m d"],
    labels: Float[torch.Tensor, "q m"],
    neighbours: int = 50,
) -> Float[torch.Tensor, " q"]:
    """Return the mean label of the nearest candidates that have one.

    Args:
        sections: For each question the vector of the section that it is about. EchoPrime's released code numbers
            questions and sections apart and takes the i-th section for the i-th question: `sections` in that order give
            its numbers.
        candidates: Vectors of known studies or of their texts.
        labels: Of each candidate for each question, NaN where it is not known.
        neighbours: How many candidates are looked at.

    Returns:
        NaN where no neighbour has a label, or the section has no vector. Candidates that are equally near to
        `TIE_DECIMALS` decimals, as those of one wording are, share the last places among them.
    """
    likeness = (sections @ candidates.T).double().round(decimals=TIE_DECIMALS)
    number = min(neighbours, len(candidates))
    last = likeness.topk(number, dim=1).values[:, -1:]
    nearer, level = likeness > last, likeness == last
    weight = nearer.double() + level * ((number - nearer.sum(1, keepdim=True)) / level.sum(1, keepdim=True))
    weight = weight.masked_fill(labels.isnan(), 0.0)
    total = weight.sum(1)
    means = (weight * labels.double().nan_to_num()).sum(1) / total
    return torch.where(sections.any(1) & (total > 0), means, torch.nan).to(labels.dtype)


def nearest_texts(
    sections: Float[torch.Tensor, "s d"], candidates: Float[torch.Tensor, "m d"], has: Bool[torch.Tensor, "s m"]
) -> Int[torch.Tensor, " s"]:
    """Return for each section the candidate nearest to it among those whose report has the section; -1 without one."""
    found = (sections @ candidates.T).masked_fill(~has, -torch.inf)
    return torch.where(has.any(1) & sections.any(1), found.argmax(1), -1)
