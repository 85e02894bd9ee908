"""Masks of a volume, brought to its grid.

Guarantee: a mask is used only if it lies on the grid that the volume had in its file; then it goes the same way as the
volume (axes, straightening, resampling, crop), each voxel taking the nearest value. Nothing is moved to fit.
"""

from __future__ import annotations

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
from medvlp.io.seg import read_segmentation

if TYPE_CHECKING:
    from jaxtyping import Float, Integer, Shaped

    from medvlp.types import Mask, Volume

LARGEST_OFFSET = 0.25
"""Distance between corresponding voxels of mask and volume, in voxels, up to which they count as one."""
_LARGEST_VALUE = 65535
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
    if len(numbers) > _LARGEST_VALUE:
        raise UserError(f"{len(numbers)} structures; up to {_LARGEST_VALUE} fit a label map.", root, "Leave some out.")
    labels = np.zeros(native.shape, dtype=np.uint8 if len(numbers) < 256 else np.uint16)
    last: tuple[Path, np.ndarray] | None = None
    for mask in masks:
        if mask.path is None:
            raise UserError(f"A mask of {mask.label} is no file.", root, "Masks of volumes must be files.")
        path = Path(root) / mask.path
        if volume_format(path) == "dicom":
            _paint_segmentation(path, mask, native, labels, numbers[mask.label])
            continue
        if last is None or last[0] != path:
            last = path, _on_native_grid(path, native, trust_shape)
            _check_values(last[1], known_values, path)
        values = last[1]
        inside = np.isin(values, mask.values) if mask.values else values != 0
        labels[inside] = numbers[mask.label]
    return native.to_volume(labels, volume), {number: label for label, number in numbers.items()}


def _check_values(values: np.ndarray, known: Sequence[int], path: Path) -> None:
    """Refuse a label map that holds values which its list does not have."""
    if not known:
        return
    counts = np.bincount(values.ravel(), minlength=max(known) + 1)
    counts[[0, *known]] = 0
    if counts.any():
        found = ", ".join(f"{value} ({counts[value]:,} voxels)" for value in np.flatnonzero(counts)[:5])
        what = f"The label map holds values that its list does not have: {found}."
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
        return np.ascontiguousarray(turned[np.ix_(*_indices(turned.shape, affine, volume))])


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


def _on_native_grid(path: Path, native: _Native, trust_shape: bool) -> Shaped[np.ndarray, "a b c"]:
    """Read a label map and return it in the axis order of the volume's file."""
    if native.straightened is not None:
        what = "The volume's slices were resampled to a straight grid, so a mask without slice positions has no place."
        raise UserError(what, path, "Use a DICOM SEG, or leave the masks of this volume out.")
    values, affine = read_label_map(path, int(np.prod(native.shape)) * 8)
    if affine is None or _is_identity(affine) or native.affine is None:
        if values.shape != native.shape:
            raise UserError(_other_shape(values.shape, native.shape), path, _FIX)
        same = affine is not None and native.affine is not None and np.allclose(affine, native.affine)
        if not trust_shape and not same:
            what = "The mask or its volume has no geometry, so nothing says that they lie on one grid."
            raise UserError(what, path, "Ask for masks to be matched by their shape, if the data set says so.")
        return values
    try:
        check_affine(affine)
    except BadGeometry as error:
        raise UserError(f"The geometry of the mask is unusable: {error}.", path, _FIX) from None
    ours, theirs = layout_of(native.affine), layout_of(affine)
    turned = theirs.canonical(values)
    shape = ours.canonical(np.empty(native.shape, dtype=bool)).shape
    if turned.shape != shape:
        raise UserError(_other_shape(turned.shape, shape), path, _FIX)
    offset = _largest_offset(
        canonical_affine(native.affine, ours, native.shape), canonical_affine(affine, theirs, values.shape), shape
    )
    if offset > LARGEST_OFFSET:
        what = f"The mask lies up to {offset:.3g} voxels beside its volume, or is turned or scaled against it."
        raise UserError(what, path, _FIX)
    return ours.in_file_order(turned)


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


def read_label_map(path: Path, free: int) -> tuple[Shaped[np.ndarray, "a b c"], Float[np.ndarray, "4 4"] | None]:
    """Read a NIfTI, MHD or NRRD label map.

    Args:
        path: The file.
        free: Bytes that it may unpack to in any case.

    Returns:
        uint16 values in the order of the bytes, slowest axis first, and the affine of that index (None: not stated).

    Raises:
        UserError: The file is damaged, or its values are no labels (whole numbers from 0 to 65535).
    """
    from medvlp.io import itk_files, nifti
    from medvlp.io.streams import pieces

    kind = volume_format(path)
    if kind == "nifti":
        header: Any = nifti.read_nifti_header(path, free)
        opened, scaling = nifti.open_data(path, header), header.scaling
    elif kind in ("metaimage", "nrrd"):
        header = itk_files.read_itk_header(path, kind, free)
        opened, scaling = itk_files.open_itk_data(path, header), (1.0, 0.0)
    else:
        raise UserError("The mask is no NIfTI, MHD, NRRD or DICOM SEG file.", path, "Convert it to one of these.")
    values = np.empty(header.shape, dtype=np.uint16)
    with opened as stream:
        for place, part in pieces(stream, header.shape, header.dtype, path):
            values[place] = _whole(part, scaling, path)
    return values, header.affine


def _whole(part: np.ndarray, scaling: tuple[float, float], path: Path) -> np.ndarray:
    if scaling != (1.0, 0.0):
        part = part * scaling[0] + scaling[1]
    if part.dtype.kind == "f":
        if not np.isfinite(part).all() or np.abs(part - np.rint(part)).max() > 1e-3:
            raise UserError("The mask holds fractions, so it is no label map.", path, "Convert it to whole numbers.")
        part = np.rint(part)
    if part.min() < 0 or part.max() > _LARGEST_VALUE:
        what = (
            f"The mask holds values from {part.min():.6g} to {part.max():.6g}; labels run from 0 to {_LARGEST_VALUE}."
        )
        raise UserError(what, path, "Use the label map, not the image.")
    return part


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
