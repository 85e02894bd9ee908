"""Distances between the surfaces of two masks in mm: Hausdorff distance, average distance, surface Dice.

Guarantee: surfaces and distances are MONAI's (mask minus its erosion, the border of the array counting as outside;
exact Euclidean distances with the spacing of each axis), in 2D and 3D. Without any surface nothing is scored: NaN. With
one of two it is a miss, which never drops out of a mean: surface Dice 0, and distances infinite or what the caller puts
for it. MONAI 1.6 gives NaN for the 95th percentile of a miss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

MISSED = math.inf


@dataclass(frozen=True, slots=True)
class SurfaceScores:
    """How far two surfaces are from each other.

    Args:
        hd95: Larger one of the 95th percentiles of both directions (mm, interpolated linearly).
        hd: Hausdorff distance: the largest distance (mm).
        assd: Mean of all distances of both directions (mm).
        nsd: Surface Dice: the share of both surfaces that is within the tolerance of the other (Nikolov et al. 2021).
        hd95_forward: 95th percentile from the prediction to the reference alone (mm).
    """

    hd95: float
    hd: float
    assd: float
    nsd: float
    hd95_forward: float


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length of the diagonal of an image: no distance within it is larger."""
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))


def surface_scores(
    predicted: Bool[np.ndarray, "*grid"],
    reference: Bool[np.ndarray, "*grid"],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    subvoxels: bool = False,
    missed_mm: float = MISSED,
) -> SurfaceScores:
    """Compare two masks of one structure.

    Args:
        predicted: Mask in 2D or 3D.
        reference: Mask of the truth.
        spacing_mm: Distance of neighbours along each axis; it must be known.
        tolerance_mm: Of the surface Dice.
        subvoxels: Surface Dice weighs surface elements between voxels by their area, and all distances are measured
            between these; False: voxels count alike.
        missed_mm: Distance where one of the masks is empty and the other is not; `diagonal_mm` is the largest possible.

    Raises:
        ValueError: Masks of different shapes, or no positive spacing for each axis.
    """
    predicted, reference = np.asarray(predicted, dtype=bool), np.asarray(reference, dtype=bool)
    spacing = tuple(float(step) for step in spacing_mm)
    if predicted.shape != reference.shape:
        raise ValueError(f"the masks have different shapes: {predicted.shape} and {reference.shape}")
    if len(spacing) != predicted.ndim or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"a mask with {predicted.ndim} axes needs as many spacings above 0, got {spacing}")
    if not predicted.any() and not reference.any():
        return SurfaceScores(*[math.nan] * 5)
    if not predicted.any() or not reference.any():
        return SurfaceScores(missed_mm, missed_mm, missed_mm, 0.0, missed_mm)
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges = get_mask_edges(predicted, reference, spacing=spacing if subvoxels else None)
    own, true = edges[0], edges[1]
    forward = np.asarray(get_surface_distance(own, true, spacing=spacing), dtype=np.float64)
    backward = np.asarray(get_surface_distance(true, own, spacing=spacing), dtype=np.float64)
    areas = (edges[2][own], edges[3][true]) if subvoxels else (np.ones(len(forward)), np.ones(len(backward)))
    # In single precision, as the distances are made: there 1.2 is not within 1.2 of double precision.
    tolerance = float(np.float32(tolerance_mm))
    near = sum(
        float(area[distance <= tolerance].sum()) for area, distance in zip(areas, (forward, backward), strict=True)
    )
    both = np.concatenate([forward, backward])
    hd95_forward = float(np.percentile(forward, 95))
    return SurfaceScores(
        hd95=max(hd95_forward, float(np.percentile(backward, 95))),
        hd=float(both.max()),
        assd=float(both.mean()),
        nsd=near / float(sum(area.sum() for area in areas)),
        hd95_forward=hd95_forward,
    )
