"""Contrast of organs with the texts about them (fVLM, ICLR 2025, arXiv 2501.14548).

Guarantee: an organ that the crop cuts, or that is not in it, takes no part; two normal organs, or two with one text,
are never negatives. Computed in at least float32 also under autocast; on several ranks the mean of the values is that
of one process with the whole batch. Values and gradients are those of the official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import at_least_float32, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]


def organ_cells(
    organs: Int[torch.Tensor, "b d h w"], number: int, patch: tuple[int, int, int]
) -> Bool[torch.Tensor, "b o p"]:
    """Return which patches, row-major over the grid, hold a voxel of each organ.

    Args:
        organs: 1 + the place of the organ, else 0.
        number: Organs, `o`.
        patch: Voxels of a patch along d, h, w; it divides the sides.
    """
    masks = torch.stack([(organs == organ + 1).float() for organ in range(number)], dim=1)
    return functional.max_pool3d(masks, patch, patch).flatten(2) > 0


def whole_organs(organs: Int[torch.Tensor, "b d h w"], number: int) -> Bool[torch.Tensor, "b o"]:
    """Return which organs lie whole in the crop: there, and with no voxel on one of its six faces."""
    values = torch.arange(1, number + 1, device=organs.device)
    there = (organs.flatten(1)[:, None] == values[:, None]).any(2)
    faces = [organs.movedim(axis, 1)[:, (0, -1)].flatten(1) for axis in (1, 2, 3)]
    cut = (torch.cat(faces, dim=1)[:, None] == values[:, None]).any(2)
    return there & ~cut


def organ_contrast(
    image: Float[torch.Tensor, "b o d"],
    text: Float[torch.Tensor, "b o d"],
    counted: Bool[torch.Tensor, "b o"],
    normal: Bool[torch.Tensor, "b o"],
    abnormal: Bool[torch.Tensor, "b o"],
    same: Int[torch.Tensor, "b o"],
    scale: Scalar,
) -> tuple[Scalar, Scalar]:
    """Soft-target contrast of the patients of each organ, summed over organs.

    `T_ij` is 1 for i = j, for two normal organs and for equal texts, rows brought to the sum 1; the loss of an organ is
    half of `mean_i -sum_j T_ij log softmax(scale Z Z')_ij` plus the same from texts to images. An organ that is
    abnormal in no patient of any rank, or whose T has a single value (all patients alike, or one alone), is left out.

    Args:
        image: Vectors of organs, of any length.
        text: Vectors of the texts about them, of any length.
        counted: Organs that take part; see `whole_organs`.
        normal: Organs whose text calls them normal.
        abnormal: Organs with a finding.
        same: Equal numbers mean equal texts, on all ranks.
        scale: Factor of the cosines.

    Returns:
        value, count: `count` is the number of organs of local patients that took part.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = unit(image), unit(text), at_least_float32(scale)
        rows = [row[0] for row in gather_counts([len(image)], image.device)]
        if sum(rows) == 0:
            return nothing(image, text, scale)
        everyone = [gather_with_gradient(tensor, rows) for tensor in (image, text)]
        taking, calm, ill = (
            gather_with_gradient(flags.to(torch.uint8), rows).bool() for flags in (counted, normal, abnormal)
        )
        numbers = gather_with_gradient(same, rows)
        first = sum(rows[: rank()])
        own = torch.arange(first, first + len(image), device=image.device)
        alike = (numbers[own][:, None] == numbers) | (calm[own][:, None] & calm)
        alike = alike | (own[:, None] == torch.arange(len(numbers), device=image.device))[..., None]
        entering = _entering(taking, calm, ill, numbers)
        local = counted & entering
        value = scale.new_zeros(())
        for query, keys in ((image, everyone[1]), (text, everyone[0])):
            logits = scale * torch.einsum("iod,jod->ijo", query, keys)
            logs = logits.masked_fill(~taking, torch.finfo(logits.dtype).min).log_softmax(1)
            target = (alike & taking).to(logits.dtype)
            rows_of = -(target / target.sum(1, keepdim=True).clamp_min(1) * logs.masked_fill(~taking, 0.0)).sum(1)
            patients = taking.sum(0).clamp_min(1).to(rows_of.dtype)
            value = value + 0.5 * (rows_of.masked_fill(~local, 0.0) / patients).sum()
        return value * world_size(), local.sum().to(value.dtype)


def _entering(
    taking: Bool[torch.Tensor, "b o"],
    calm: Bool[torch.Tensor, "b o"],
    ill: Bool[torch.Tensor, "b o"],
    numbers: Int[torch.Tensor, "b o"],
) -> Bool[torch.Tensor, " o"]:
    """Return the organs that enter: somebody's is abnormal, and not all patients are alike."""
    pairs = taking[:, None] & taking
    alike = (numbers[:, None] == numbers) | (calm[:, None] & calm)
    return (taking & ill).any(0) & (pairs & ~alike).any(1).any(0)
