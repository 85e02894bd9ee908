"""Order and regularity of the slices of one series, from their positions in space and nothing else.

Guarantee: slices are ordered along the normal of their plane; what would make a plain stack wrong (several slices at
one place, uneven distances, a shift between slices) is named with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.io.grid import LARGEST_SHEAR, LPS_TO_RAS

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.io.dicom_header import Plane

SAME_PLACE_MM = 0.01
LARGEST_GAP_DEVIATION = 0.01
"""Part of the median distance by which a distance may differ."""
LARGEST_SHIFT_PIXELS = 0.2
"""Distance of a slice, in its own plane, from the straight line through first and last."""


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one size, ordered along the normal.

    `order[i]` is the index of the i-th slice among those given; `distance_mm[i]` its place along the normal, from 0;
    `shift_mm[i]` its place (along rows, along columns) in the plane, relative to the first.
    """

    order: Int[np.ndarray, " n"]
    distance_mm: Float[np.ndarray, " n"]
    shift_mm: Float[np.ndarray, "n 2"]
    first: Plane
    normal: Float[np.ndarray, " 3"]

    @property
    def step_mm(self) -> float:
        """Median distance between neighbours."""
        return float(np.median(np.diff(self.distance_mm)))

    @property
    def doubled(self) -> str | None:
        """What is wrong if several slices lie at one place."""
        together = int((np.diff(self.distance_mm) < SAME_PLACE_MM).sum())
        if not together:
            return None
        places = len(self.order) - together
        return f"{len(self.order)} slices lie at {places} places: several phases or reconstructions in one series"

    @property
    def uneven(self) -> str | None:
        """What is wrong with the distances, if anything."""
        gaps = np.diff(self.distance_mm)
        wrong = np.abs(gaps - self.step_mm) > LARGEST_GAP_DEVIATION * self.step_mm
        if not wrong.any():
            return None
        return (
            f"{int(wrong.sum())} of {len(gaps)} distances between slices differ from their median of "
            f"{self.step_mm:.4g} mm by more than 1 % ({gaps.min():.4g} to {gaps.max():.4g} mm)"
        )

    @property
    def shifted(self) -> str | None:
        """What is wrong if the slices are not straight above each other (gantry tilt), if anything."""
        extent = float(self.distance_mm[-1])
        slope = self.shift_mm[-1] / extent
        residual = np.abs(self.shift_mm - self.distance_mm[:, None] * slope)
        if float(np.linalg.norm(slope)) > LARGEST_SHEAR:
            angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
            return f"the slices are shifted against each other by {angle:.1f} degrees (gantry tilt)"
        if (residual.max(axis=0) > LARGEST_SHIFT_PIXELS * np.asarray(self.first.spacing_mm[::-1])).any():
            return f"single slices are shifted sideways by up to {residual.max():.3g} mm"
        return None

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """From (slice, row, column) to RAS in mm, for a regular stack: first slice to last in equal steps."""
        row, column = np.asarray(self.first.row), np.asarray(self.first.column)
        last = self.distance_mm[-1] * self.normal + self.shift_mm[-1] @ np.stack([row, column])
        matrix = np.eye(4)
        matrix[:3, 0] = last / (len(self.order) - 1)
        matrix[:3, 1] = column * self.first.spacing_mm[0]
        matrix[:3, 2] = row * self.first.spacing_mm[1]
        matrix[:3, 3] = self.first.position
        return LPS_TO_RAS @ matrix


def stack_slices(planes: Sequence[Plane]) -> Stack:
    """Order parallel slices along their normal.

    Args:
        planes: At least two, of one orientation and spacing.

    Raises:
        ValueError: There are fewer than two, or orientation or spacing differ.
    """
    if len(planes) < 2:
        raise ValueError("it has one slice, so nothing says how thick it is or which way it runs")
    first = planes[0]
    directions = np.asarray([(*plane.row, *plane.column) for plane in planes])
    spacings = np.asarray([plane.spacing_mm for plane in planes])
    if np.abs(directions - directions[0]).max() > SAME_DIRECTION:
        raise ValueError("its slices have several orientations")
    if np.abs(spacings / spacings[0] - 1).max() > SAME_SPACING:
        raise ValueError("its slices have several pixel spacings")
    normal = np.cross(first.row, first.column)
    normal /= np.linalg.norm(normal)
    positions = np.asarray([plane.position for plane in planes])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    first = planes[int(order[0])]
    moved = positions[order] - positions[order[0]]
    shift = moved @ np.stack([first.row, first.column]).T
    return Stack(order, along[order] - along[order[0]], shift, first, normal)


SAME_DIRECTION = 1e-3
"""Largest difference of a direction cosine between slices of one volume."""
SAME_SPACING = 1e-3
"""Largest relative difference of the pixel spacing between slices of one volume."""
