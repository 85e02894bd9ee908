"""Uneven or shifted slices -> a straight, even grid, by interpolation along the normal and within the plane.

Guarantee: done only where the configuration asks for it, and recorded. A point is interpolated between the two slices
next to it along the normal, each read at its own place in its plane; what no slice covers has the fill value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.io.dicom_header import Plane
from medvlp.io.grid import LPS_TO_RAS, BadGeometry, Canvas
from medvlp.io.stack import Stack

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

LARGEST_GROWTH = 4
"""Times the slices, or the pixels of a side, that a straight grid may have more than the series."""


@dataclass(frozen=True)
class StraightGrid:
    """The even grid of a stack: `count` slices of `rows` x `columns`, shifted by whole pixels against the first."""

    stack: Stack
    count: int
    rows: int
    columns: int
    top: int
    left: int
    slice_size: tuple[int, int]

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """From (slice, row, column) to RAS in mm."""
        first = self.stack.first
        row, column = np.asarray(first.row), np.asarray(first.column)
        matrix = np.eye(4)
        matrix[:3, 0] = self.stack.normal * self.stack.step_mm
        matrix[:3, 1] = column * first.spacing_mm[0]
        matrix[:3, 2] = row * first.spacing_mm[1]
        matrix[:3, 3] = first.position + self.top * matrix[:3, 1] + self.left * matrix[:3, 2]
        return LPS_TO_RAS @ matrix

    def canvas(self) -> Canvas:
        """Return the array to fill."""
        return Canvas((self.count, self.rows, self.columns), self.affine)


def straight_grid(stack: Stack, rows: int, columns: int) -> StraightGrid:
    """Return the grid that covers all slices, at their median distance.

    Raises:
        BadGeometry: It would be many times larger than the series.
    """
    count = math.floor(float(stack.distance_mm[-1]) / stack.step_mm + 1e-3) + 1
    pixels = stack.shift_mm / np.asarray(stack.first.spacing_mm[::-1])
    left, top = (math.floor(value + 1e-3) for value in pixels.min(axis=0))
    right, bottom = (math.ceil(value - 1e-3) for value in pixels.max(axis=0))
    grid = StraightGrid(stack, count, rows + bottom - top, columns + right - left, top, left, (rows, columns))
    slices = len(stack.order)
    if count > LARGEST_GROWTH * slices or grid.rows > LARGEST_GROWTH * rows or grid.columns > LARGEST_GROWTH * columns:
        raise BadGeometry(f"its {slices} slices are spread over the room of {count}, or far sideways")
    return grid


def straighten(
    slices: Shaped[np.ndarray, "n h w"], grid: StraightGrid, canvas: Canvas, fill: float, order: int = 1
) -> None:
    """Interpolate ordered slices onto a straight grid.

    Args:
        slices: In the order of the stack.
        grid: Of the stack.
        canvas: Its array, which is filled.
        fill: Value where there is no slice.
        order: 1 interpolates linearly, 0 takes the nearest.
    """
    stack = grid.stack
    placed: dict[int, Float[np.ndarray, "rows columns"]] = {}
    for index in range(grid.count):
        distance = index * stack.step_mm
        after = int(np.clip(np.searchsorted(stack.distance_mm, distance), 1, len(slices) - 1))
        before = after - 1
        gap = float(stack.distance_mm[after] - stack.distance_mm[before])
        weight = float(np.clip((distance - stack.distance_mm[before]) / gap, 0, 1))
        weight = weight if order else float(round(weight))
        placed = {k: placed[k] if k in placed else _placed(slices, k, grid, fill, order) for k in (before, after)}
        canvas.view[index] = np.rint((1 - weight) * placed[before] + weight * placed[after])


def grid_of(record: dict[str, Any]) -> StraightGrid:
    """Return the grid that `record_of` recorded."""
    first, slices = record["first"], len(record["distances_mm"])
    plane = Plane(
        tuple(first["position"]),
        tuple(first["row"]),
        tuple(first["column"]),
        tuple(first["spacing_mm"]),
        None,
        None,
        "",
    )
    normal = np.cross(plane.row, plane.column)
    stack = Stack(
        np.arange(slices),
        np.asarray(record["distances_mm"]),
        np.asarray(record["shifts_mm"]),
        plane,
        normal / np.linalg.norm(normal),
    )
    return straight_grid(stack, *record["size"])


def _placed(
    slices: Shaped[np.ndarray, "n h w"], k: int, grid: StraightGrid, fill: float, order: int
) -> Float[np.ndarray, "rows columns"]:
    """Return one slice in the plane of the grid."""
    from scipy import ndimage

    _, rows, columns = slices.shape
    room = np.full((grid.rows, grid.columns), fill, dtype=np.float32)
    room[:rows, :columns] = slices[k]
    x, y = grid.stack.shift_mm[k] / np.asarray(grid.stack.first.spacing_mm[::-1]) - (grid.left, grid.top)
    if abs(x - round(x)) < 1e-3 and abs(y - round(y)) < 1e-3:
        room[:] = fill
        room[round(y) : round(y) + rows, round(x) : round(x) + columns] = slices[k]
        return room
    return ndimage.shift(room, (y, x), order=order, mode="grid-constant", cval=fill, prefilter=False)


def record_of(grid: StraightGrid) -> dict[str, Any]:
    """Return what was done, for provenance, with the slices' own places in mm: enough for `grid_of`."""
    stack, first = grid.stack, grid.stack.first
    return {
        "first": {
            "position": list(first.position),
            "row": list(first.row),
            "column": list(first.column),
            "spacing_mm": list(first.spacing_mm),
        },
        "size": list(grid.slice_size),
        "step_mm": stack.step_mm,
        "slices": grid.count,
        "distances_mm": [float(value) for value in stack.distance_mm],
        "shifts_mm": [[float(x), float(y)] for x, y in stack.shift_mm],
        "uneven": stack.uneven,
        "shifted": stack.shifted,
    }
