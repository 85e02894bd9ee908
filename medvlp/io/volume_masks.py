"""Masks of a volume, brought to its grid.

Guarantee: a mask is used only if it lies on the grid that the volume had in its file; then it goes the same way as the
volume (axes, straightening, resampling, crop), each voxel taking the nearest value. Nothing is moved to fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.formats import volume_format
from medvlp.io.grid import (
    IDENTITY,
    BadGeometry,
    Canvas,
    canonical_affine,
    check_affine,
    layout_of,
    spacing_of,
)
from medvlp.io.label_map import LARGEST_VALUE, LabelMap, open_label_map
from medvlp.io.seg import read_segmentation

if TYPE_CHECKING:
    from jaxtyping import Float, Integer

    from medvlp.types import Mask, Volume

LARGEST_OFFSET = 0.25
"""Distance between corresponding voxels of mask and volume, in voxels, up to which they count as one."""
_FIX = "Use the mask that was drawn on this volume, or resample it to the volume's grid."


def read_volume_labels(
    root: Path, masks: Sequence[Mask], volume: Volume, *, trust_shape: bool = False, known_values: Sequence[int] = ()
) -> tuple[Integer[np.ndarray, "d h w"], dict[int, str]]:
    """Read the masks of one volume to one label map on its grid.

    Args:
        root: Folder of the data set.
        masks: Files (NIfTI, MHD, NRRD, DICOM SEG) in the order in which they are painted: later ones win. Structures
            are numbered from 1 in the order in which their labels first occur.
        volume: As `read_volume` gave it.
        trust_shape: Accept a mask without geometry (none, or an identity affine), or for a volume without geometry, if
            its shape is that of the volume's file: the caller knows that they share the voxel grid.
        known_values: Values besides 0 that a label map may hold (empty: any): one with others has another numbering
            than its list, and the names of all of its values are in doubt.

    Returns:
        uint8 labels (uint16 beyond 255 structures) `[d h w]`, and the name of each value.

    Raises:
        UserError: A file is missing or damaged, is no label map, holds a value that is not known, or does not lie on
            the volume's grid.
    """
    native = _Native.of(volume)
    numbers: dict[str, int] = {}
    for mask in masks:
        numbers.setdefault(mask.label, len(numbers) + 1)
    if len(numbers) > LARGEST_VALUE:
        raise UserError(f"{len(numbers)} structures; up to {LARGEST_VALUE} fit a label map.", root, "Leave some out.")
    labels = native.empty(np.uint8 if len(numbers) < 256 else np.uint16)
    for name, group in itertools.groupby(masks, key=lambda mask: mask.path):
        of_file = list(group)
        if name is None:
            raise UserError(f"A mask of {of_file[0].label} is no file.", root, "Masks of volumes must be files.")
        path = Path(root) / name
        if volume_format(path) == "dicom":
            for mask in of_file:
                _paint_segmentation(path, mask, native, labels, numbers[mask.label])
        else:
            _paint_label_map(path, of_file, native, labels, numbers, trust_shape, known_values)
    return native.to_volume(labels, volume), {number: label for label, number in numbers.items()}


def _paint_label_map(
    path: Path,
    masks: Sequence[Mask],
    native: _Native,
    labels: np.ndarray,
    numbers: dict[str, int],
    trust_shape: bool,
    known_values: Sequence[int],
) -> None:
    """Paint masks of one file, in their order, as the file is read: no copy of it is held."""
    number_of = np.zeros(LARGEST_VALUE + 1, dtype=labels.dtype)
    for mask in masks:
        chosen = [value for value in mask.values if 0 <= value <= LARGEST_VALUE]
        number_of[chosen if mask.values else slice(1, None)] = numbers[mask.label]
    unknown = np.zeros(LARGEST_VALUE + 1, dtype=np.int64)
    with open_label_map(path, int(np.prod(native.shape)) * 8) as label_map:
        room = _room(labels, label_map, native, trust_shape, path)
        for index, values in label_map.planes:
            if known_values:
                unknown += np.bincount(values.ravel(), minlength=len(unknown))
            found = np.take(number_of, values, mode="clip")  # "raise" would buffer; no value is out
            np.copyto(room[index], found, where=found != 0)
    unknown[[0, *known_values]] = 0
    if unknown.any():
        listed = ", ".join(f"{value} ({unknown[value]:,} voxels)" for value in np.flatnonzero(unknown)[:5])
        what = f"The label map holds values that its list does not have: {listed}."
        raise UserError(what, path, "Use the original label map, or correct it: the names of its values are in doubt.")


@dataclass(frozen=True)
class _Native:
    """The grid of a volume's file: shape and affine in file order; `straightened` where slices were resampled."""

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"] | None
    straightened: dict[str, Any] | None
    path: str

    @classmethod
    def of(cls, volume: Volume) -> _Native:
        record, straightened = volume.provenance["grid"], volume.provenance.get("straightened")
        path = str(volume.provenance["path"])
        if straightened is not None:
            slices = len(straightened["distances_mm"])
            rows, columns = straightened["size"]
            return cls((slices, rows, columns), None, straightened, path)
        a, b, c = record["shape"]
        return cls((a, b, c), None if record["affine"] is None else np.asarray(record["affine"]), None, path)

    def empty(self, dtype: type[np.integer[Any]]) -> Integer[np.ndarray, "a b c"]:
        """Return room for labels in file order; in memory they lie in the order of a volume, so no copy turns them."""
        layout = IDENTITY if self.affine is None else layout_of(self.affine)
        return layout.in_file_order(np.zeros([self.shape[axis] for axis in layout.order], dtype=dtype))

    def to_volume(self, labels: Integer[np.ndarray, "a b c"], volume: Volume) -> Integer[np.ndarray, "d h w"]:
        """Bring labels in file order to the grid of the volume."""
        affine: Float[np.ndarray, "4 4"] | None
        if self.straightened is not None:
            from medvlp.io.straighten import grid_of, straighten

            grid = grid_of(self.straightened)
            canvas = Canvas((grid.count, grid.rows, grid.columns), grid.affine, labels.dtype.type)
            straighten(labels, grid, canvas, 0, order=0)
            turned, affine = canvas.array, canvas.affine
        else:
            layout = IDENTITY if self.affine is None else layout_of(self.affine)
            turned = layout.canonical(labels)
            affine = None if self.affine is None else canonical_affine(self.affine, layout, self.shape)
        indices = _indices(turned.shape, affine, volume)
        if any(not np.array_equal(own, np.arange(n)) for own, n in zip(indices, turned.shape, strict=True)):
            turned = turned[np.ix_(*indices)]
        return np.ascontiguousarray(turned)


def _indices(
    shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"] | None, volume: Volume
) -> list[Integer[np.ndarray, " n"]]:
    """Return, per axis, the voxel of the file's grid (in d, h, w) nearest to each voxel of the volume."""
    size = volume.array.shape
    if affine is None or volume.affine is None:
        box = (volume.provenance.get("crop") or {}).get("box", [[0, n] for n in shape])
        return [np.arange(start, stop) for start, stop in box]
    change = np.linalg.inv(affine) @ volume.affine
    indices = []
    for axis in range(3):
        places = change[axis, 3] + change[axis, axis] * np.arange(size[axis])
        indices.append(np.clip(np.rint(places), 0, shape[axis] - 1).astype(np.intp))
    return indices


def _room(
    labels: Integer[np.ndarray, "a b c"], label_map: LabelMap, native: _Native, trust_shape: bool, path: Path
) -> Integer[np.ndarray, "a b c"]:
    """Return the view of the labels whose axes run as those of a label map on the same grid."""
    if native.straightened is not None:
        what = "The volume's slices were resampled to a straight grid, so a mask without slice positions has no place."
        raise UserError(what, path, "Use a DICOM SEG, or leave the masks of this volume out.")
    affine = label_map.affine
    if affine is None or _is_identity(affine) or native.affine is None:
        if label_map.shape != native.shape:
            raise UserError(_other_shape(label_map.shape, native.shape), path, _FIX)
        same = affine is not None and native.affine is not None and np.allclose(affine, native.affine)
        if not trust_shape and not same:
            what = "The mask or its volume has no geometry, so nothing says that they lie on one grid."
            raise UserError(what, path, "Ask for masks to be matched by their shape, if the data set says so.")
        return labels
    try:
        check_affine(affine)
    except BadGeometry as error:
        raise UserError(f"The geometry of the mask is unusable: {error}.", path, _FIX) from None
    ours, theirs = layout_of(native.affine), layout_of(affine)
    turned = ours.canonical(labels)
    room = theirs.in_file_order(turned)
    if room.shape != label_map.shape:
        shape = [label_map.shape[axis] for axis in theirs.order]
        raise UserError(_other_shape(shape, turned.shape), path, _FIX)
    offset = _largest_offset(
        canonical_affine(native.affine, ours, native.shape),
        canonical_affine(affine, theirs, label_map.shape),
        turned.shape,
    )
    if offset > LARGEST_OFFSET:
        what = f"The mask lies up to {offset:.3g} voxels beside its volume, or is turned or scaled against it."
        raise UserError(what, path, _FIX)
    return room


def _largest_offset(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the largest distance between voxels of the same index at the grid's corners, in voxels."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.concatenate([corners, np.ones((8, 1))], axis=1)
    apart = np.linalg.norm((points @ (a - b).T)[:, :3], axis=1)
    return float(apart.max() / min(spacing_of(a)))


def _is_identity(affine: np.ndarray) -> bool:
    """Tell an affine that was never set: that of (k, j, i) is the identity, in RAS or in LPS."""
    own = affine[:, [2, 1, 0, 3]]
    return np.allclose(own, np.eye(4)) or np.allclose(own, np.diag([-1.0, -1.0, 1.0, 1.0]))


def _other_shape(found: Sequence[int], needed: Sequence[int]) -> str:
    one, two = (" x ".join(str(n) for n in shape) for shape in (found, needed))
    return f"The mask has {one} voxels where its volume has {two}."


def _paint_segmentation(path: Path, mask: Mask, native: _Native, labels: np.ndarray, number: int) -> None:
    """Paint the frames of a DICOM SEG where their planes lie among the volume's slices."""
    segmentation = read_segmentation(path)
    try:
        for plane, inside in segmentation.frames(mask.values):
            room = _plane_of_labels(plane, inside.shape, native, labels)
            room[inside] = number
    except ValueError as error:
        raise UserError(f"The segmentation cannot be used: {one_line(error)}.", path, _FIX) from None


def _plane_of_labels(plane: Any, size: tuple[int, int], native: _Native, labels: np.ndarray) -> np.ndarray:
    """Return the view of the labels on which a frame lies, rows and columns as in the frame.

    Raises:
        ValueError: There is none.
    """
    from medvlp.io.grid import LPS_TO_RAS

    position, row, column = (np.asarray(part) for part in (plane.position, plane.row, plane.column))
    if native.straightened is not None:
        return labels[_slice_at(position, row, column, plane.spacing_mm, size, native)]
    if native.affine is None:
        raise ValueError("the volume has no geometry")
    own = np.stack([column * plane.spacing_mm[0], row * plane.spacing_mm[1]], axis=1)
    inverse = np.linalg.inv(native.affine)
    steps = inverse[:3, :3] @ LPS_TO_RAS[:3, :3] @ own
    start = (inverse @ LPS_TO_RAS @ np.asarray([*position, 1.0]))[:3]
    whole, first = np.rint(steps).astype(int), np.rint(start).astype(int)
    reach = np.abs(steps - whole) @ (np.asarray(size) - 1)
    if (np.abs(start - first) + reach).max() > LARGEST_OFFSET or not (np.abs(whole).sum(axis=0) == 1).all():
        raise ValueError("a frame does not lie on a slice of the volume, or is turned or scaled against it")
    axis_of_rows, axis_of_columns = (int(np.flatnonzero(whole[:, i])[0]) for i in range(2))
    across = 3 - axis_of_rows - axis_of_columns
    last = first + whole @ (np.asarray(size) - 1)
    full = [axis for axis in (axis_of_rows, axis_of_columns) if axis_of_rows != axis_of_columns]
    ends = [sorted((int(first[axis]), int(last[axis]))) for axis in full]
    if len(full) != 2 or ends != [[0, labels.shape[axis] - 1] for axis in full]:
        raise ValueError("a frame does not have the pixels of a slice of the volume")
    if not 0 <= first[across] < labels.shape[across]:
        raise ValueError("a frame lies outside of the volume")
    room = np.moveaxis(labels, (across, axis_of_rows, axis_of_columns), (0, 1, 2))[first[across]]
    return room[:: int(whole[axis_of_rows, 0]), :: int(whole[axis_of_columns, 1])]


def _slice_at(
    position: np.ndarray, row: np.ndarray, column: np.ndarray, spacing: tuple[float, float], size: Any, native: _Native
) -> int:
    """Return the slice of a straightened series on which a frame lies."""
    record = native.straightened or {}
    first = record["first"]
    turned = max(np.abs(row - first["row"]).max(), np.abs(column - first["column"]).max())
    scaled = np.abs(np.divide(spacing, first["spacing_mm"]) - 1).max()
    if turned > 1e-3 or scaled > 1e-3 or tuple(size) != native.shape[1:]:
        raise ValueError("a frame is turned or scaled against the slices of the volume")
    moved = position - first["position"]
    normal = np.cross(first["row"], first["column"])
    places = np.column_stack([record["distances_mm"], record["shifts_mm"]])
    own = np.asarray([moved @ normal, moved @ np.asarray(first["row"]), moved @ np.asarray(first["column"])])
    apart = np.abs(places - own).max(axis=1)
    nearest = int(apart.argmin())
    if apart[nearest] > LARGEST_OFFSET * min(first["spacing_mm"]):
        raise ValueError("a frame does not lie on a slice of the volume")
    return nearest
