"""VoCo: a random crop of a volume says by its similarities to base crops where in the volume it lies.

Guarantee: base crops are the tiles of a region, row-major over the two axes of a plane; sums run over the crops and
bases of one volume, then the mean over the volumes of all ranks; where a volume is compared with another one, it is one
of its own rank. No gradient reaches what the teacher made. Sources: Wu et al., CVPR 2024 (v1) and arXiv 2410.09890
(v2), as in their official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medvlp.objectives.terms import count_of, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Scalar = Float[torch.Tensor, ""]
    Crops = Float[torch.Tensor, "b m d"]
    Bases = Float[torch.Tensor, "b k d"]
    Table = Float[torch.Tensor, "b m k"]
    OfVolumes = Float[torch.Tensor, " b"]

EPS = 1e-6
"""Added to logarithms and divisors, as in the official code."""


def overlap_labels(
    starts: Int[torch.Tensor, "*n 2"], sides: tuple[int, int], grid: tuple[int, int]
) -> Float[torch.Tensor, "*n k"]:
    """Return the share of each crop that each base crop covers, float64.

    Crops and base crops have the same depth, which does not count. A crop that lies within the region has shares that
    sum to 1.

    Args:
        starts: First voxel of each crop along the two axes of the plane, in voxels of the region.
        sides: Voxels of a crop, and of a base crop, along the two axes.
        grid: Base crops along the two axes; number `i * grid[1] + j` begins at `(i * sides[0], j * sides[1])`.
    """
    shares = []
    for axis, (side, number) in enumerate(zip(sides, grid, strict=True)):
        bases = side * torch.arange(number, device=starts.device, dtype=torch.float64)
        distance = (starts[..., axis, None].double() - bases).abs()
        shares.append((side - distance).clamp_min(0.0) / side)
    return (shares[0][..., :, None] * shares[1][..., None, :]).flatten(-2)


def position_terms_v1(
    crops: Crops, teacher_crops: Crops, bases: Bases, teacher_bases: Bases, labels: Table
) -> dict[str, tuple[Scalar, Scalar]]:
    """Return the terms `pos`, `neg` and `reg` of VoCo v1.

    The prediction is the mean of two tables of clipped cosines, student with teacher's bases and teacher with student's
    bases; a base crop that a crop does not touch costs its squared prediction.

    Args:
        crops: The student's vectors of random crops, of any length.
        teacher_crops: The teacher's.
        bases: The student's vectors of the base crops of the same volumes.
        teacher_bases: The teacher's.
        labels: See `overlap_labels`.
    """
    with torch.autocast(crops.device.type, enabled=False):
        crops, teacher_crops, bases, teacher_bases = _prepared(crops, teacher_crops, bases, teacher_bases)
        labels = labels.to(crops.dtype)
        predicted = 0.5 * (_clipped(crops, teacher_bases) + _clipped(teacher_crops, bases))
        neg = _mean_apart(predicted.square(), labels)
        return {"pos": _mean(_attraction(labels, predicted)), "neg": _mean(neg), "reg": _mean(_spread(bases))}


def position_terms_v2(
    crops: Crops, teacher_crops: Crops, bases: Bases, teacher_bases: Bases, labels: Table
) -> dict[str, tuple[Scalar, Scalar]]:
    """Return the terms `intra`, `inter` and `reg` of VoCo v2; arguments as for `position_terms_v1`.

    `intra` compares the student's crops with the teacher's bases. `inter` compares them with the student's bases of the
    next volume of the batch (its own, if there is no other); its target is what the teacher finds there.
    """
    with torch.autocast(crops.device.type, enabled=False):
        crops, teacher_crops, bases, teacher_bases = _prepared(crops, teacher_crops, bases, teacher_bases)
        intra = _position_ce(labels.to(crops.dtype), _clipped(crops, teacher_bases))
        target = _clipped(teacher_crops, teacher_bases.roll(-1, 0))
        inter = _position_ce(target, _clipped(crops, bases.roll(-1, 0)))
        return {"intra": _mean(intra), "inter": _mean(inter), "reg": _mean(_spread(bases))}


@torch.no_grad()
def position_accuracy(crops: Crops, bases: Bases, labels: Table) -> tuple[Scalar, Scalar]:
    """Return the share of crops whose most similar base crop is one of those that cover most of it; chance is 1/k."""
    found = (unit(crops) @ unit(bases).transpose(1, 2)).argmax(2, keepdim=True)
    right = labels.gather(2, found)[..., 0] == labels.amax(2)
    return mean_over_ranks(right.float().sum(), count_of(right.numel(), crops))


def _prepared(
    crops: Crops, teacher_crops: Crops, bases: Bases, teacher_bases: Bases
) -> tuple[Crops, Crops, Bases, Bases]:
    return unit(crops), unit(teacher_crops.detach()), unit(bases), unit(teacher_bases.detach())


def _clipped(crops: Crops, bases: Bases) -> Table:
    """Return cosines from 0 to 1: one that rounding makes larger than 1, as on a GPU, would have no logarithm below."""
    return (crops @ bases.transpose(1, 2)).relu().clamp(max=1.0)


def _position_ce(target: Table, predicted: Table) -> OfVolumes:
    return _attraction(target, predicted) + _mean_apart(-(1 - predicted + EPS).log(), target)


def _attraction(target: Table, predicted: Table) -> OfVolumes:
    """Return `-log(1 - |target - predicted|)`, weighted by the target."""
    log = (1 - (target - predicted).abs() + EPS).log()
    return -(target * log).sum((1, 2)) / (target.sum((1, 2)) + EPS)


def _mean_apart(values: Table, target: Table) -> OfVolumes:
    """Return the mean of the values where the target is 0."""
    apart = (target == 0).to(values.dtype)
    return (values * apart).sum((1, 2)) / (apart.sum((1, 2)) + EPS)


def _spread(bases: Bases) -> OfVolumes:
    """Return the mean squared clipped cosine of two base crops of a volume; the gradient reaches the earlier one."""
    first, second = torch.triu_indices(bases.shape[1], bases.shape[1], 1, device=bases.device)
    return (bases[:, first] * bases[:, second].detach()).sum(2).relu().square().mean(1)


def _mean(of_volumes: OfVolumes) -> tuple[Scalar, Scalar]:
    return mean_over_ranks(of_volumes.sum(), count_of(len(of_volumes), of_volumes))
