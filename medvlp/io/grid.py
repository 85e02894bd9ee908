"""Voxel grids: from a file's axis order and affine to the canonical RAS order, without touching a voxel's value.

Guarantee: axes are only exchanged and reversed, never interpolated; the affine follows exactly, so an oblique
acquisition keeps its oblique affine. A grid whose geometry nobody states has none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from medvlp.io.limits import SPACING_MM

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count towards left and posterior, NIfTI and medvlp towards right and anterior."""
LARGEST_SHEAR = 2e-3
"""Cosine between two axes up to which they count as perpendicular: 1 mm in half a metre."""
_ENDS = (("S", "I"), ("A", "P"), ("R", "L"))


class BadGeometry(ValueError):
    """A header's geometry is unusable; the message is a clause that completes "The geometry is unusable: ..."."""


def check_affine(affine: Any) -> Float[np.ndarray, "4 4"]:
    """Return an affine as float64 `[4 4]` from an array index to mm.

    Raises:
        BadGeometry: It is not finite, not invertible, or its spacing is absurd.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise BadGeometry("positions or directions are not finite numbers")
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise BadGeometry("the last row of its affine is not 0, 0, 0, 1")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        raise BadGeometry(f"a spacing of {' x '.join(f'{value:.4g}' for value in spacing)} mm")
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 0.5:
        raise BadGeometry("its axes are nearly parallel")
    return matrix


def spacing_of(affine: Float[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Return the distance in mm between neighbours along each array axis."""
    one, two, three = (float(value) for value in np.linalg.norm(affine[:3, :3], axis=0))
    return one, two, three


def shear_of(affine: Float[np.ndarray, "4 4"]) -> float:
    """Return the largest cosine between two array axes: 0 where all are perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def plain(matrix: Float[np.ndarray, "4 4"] | None) -> list[list[float]] | None:
    """Return an affine as nested lists, for provenance."""
    return None if matrix is None else [[float(value) for value in row] for row in matrix]


@dataclass(frozen=True)
class Layout:
    """How a file's axes become (d, h, w): file axis `order[i]` becomes axis i, reversed where `flips[i]`."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def canonical(self, array: Shaped[np.ndarray, "a b c"]) -> Shaped[np.ndarray, "d h w"]:
        """Return a view of an array in file order as (d, h, w)."""
        turned = array.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def in_file_order(self, array: Shaped[np.ndarray, "d h w"]) -> Shaped[np.ndarray, "a b c"]:
        """Return a view of a (d, h, w) array in the order of the file."""
        turned = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return turned.transpose(np.argsort(self.order))

    @property
    def axes(self) -> str:
        """Where the file's axes run, in their order: "SPL" has slices upwards, rows backwards, columns to the left."""
        ends = {file_axis: _ENDS[axis][int(self.flips[axis])] for axis, file_axis in enumerate(self.order)}
        return "".join(ends[axis] for axis in range(3))


IDENTITY = Layout((0, 1, 2), (False, False, False))
"""Of a file whose geometry is unknown: its axes stay."""


def layout_of(affine: Float[np.ndarray, "4 4"]) -> Layout:
    """Return the exchange and reversal of axes that brings each axis closest to superior, anterior and right."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    towards = cosines[[2, 1, 0]]  # rows: superior, anterior, right; columns: file axes
    order = max(
        itertools.permutations(range(3)), key=lambda axes: sum(abs(towards[i, axis]) for i, axis in enumerate(axes))
    )
    one, two, three = order
    flips = (bool(towards[0, one] < 0), bool(towards[1, two] < 0), bool(towards[2, three] < 0))
    return Layout((one, two, three), flips)


def canonical_affine(
    affine: Float[np.ndarray, "4 4"], layout: Layout, shape: tuple[int, int, int]
) -> Float[np.ndarray, "4 4"]:
    """Return the affine of the (d, h, w) index, given that of the file's index and the file's shape."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis, (file_axis, flip) in enumerate(zip(layout.order, layout.flips, strict=True)):
        change[file_axis, axis] = -1 if flip else 1
        change[file_axis, 3] = shape[file_axis] - 1 if flip else 0
    return affine @ change


class Canvas:
    """A new (d, h, w) array in RAS that is filled in the order of the file, so that no copy turns it.

    Args:
        shape: Of the file, in its own axis order (slowest first).
        affine: From the file's array index in that order to RAS in mm; None where nobody states it.
        dtype: Of the array.

    Raises:
        BadGeometry: The affine is unusable.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        affine: Float[np.ndarray, "4 4"] | None,
        dtype: type[np.integer[Any]] = np.int16,
    ) -> None:
        self.shape = shape
        self.file_affine = None if affine is None else check_affine(affine)
        self.layout = IDENTITY if self.file_affine is None else layout_of(self.file_affine)
        self.array = np.empty(tuple(shape[axis] for axis in self.layout.order), dtype=dtype)
        self.view = self.layout.in_file_order(self.array)
        self.affine = None if self.file_affine is None else canonical_affine(self.file_affine, self.layout, shape)

    def put(self, index: int, part: Shaped[np.ndarray, "b c"]) -> None:
        """Write one part along the file's slowest axis."""
        if self.layout.order != IDENTITY.order:
            self.view[index] = part
            return
        over_d, over_h, over_w = self.layout.flips
        target = self.array[self.shape[0] - 1 - index if over_d else index]
        if over_h or over_w:
            # An order of magnitude quicker than numpy's copy to a view with negative strides.
            cv2.flip(part, -1 if over_h and over_w else 0 if over_h else 1, dst=target)
        else:
            target[...] = part

    @property
    def record(self) -> dict[str, Any]:
        """The file's grid for provenance: shape, affine and axes in file order."""
        axes = None if self.file_affine is None else self.layout.axes
        return {"shape": list(self.shape), "affine": plain(self.file_affine), "axes": axes}
