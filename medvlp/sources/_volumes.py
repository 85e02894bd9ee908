"""What data sets of volumes share: files by name, and geometry from table cells.

Guarantee: geometry comes from cells that say it; a cell that says it in part, or says what no scanner makes, raises
`ValueError` with the value found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import PurePosixPath

from medvlp.sources._files import index_files
from medvlp.sources._label_maps import case_of
from medvlp.sources.base import Source

Affine = tuple[tuple[float, float, float, float], ...]
NIFTI = (".nii.gz", ".nii")
_TOLERANCE = 1e-3


def without_nifti_suffix(name: str) -> str:
    """Return the name of a file without `.nii` or `.nii.gz`, and without the folders before it."""
    return case_of(PurePosixPath(name.strip()).name)


def nifti_files(source: Source, patterns: Iterable[str]) -> dict[str, str]:
    """Return name without suffix -> path relative to the root, for the NIfTI files that match any of the patterns.

    Of `x.nii` and `x.nii.gz` in one folder the first is kept and the other recorded: readers that are asked for the
    second may open the first.
    """
    found = index_files(source, patterns, (".nii", ".gz"), by=without_nifti_suffix)
    return {name: path for name, path in found.items() if path.lower().endswith(NIFTI)}


def number_list(cell: str, length: int) -> list[float]:
    """Return the numbers of a cell `[0.7, 0.7]`.

    Raises:
        ValueError: It is no list of `length` finite numbers.
    """
    try:
        values = [float(value) for value in json.loads(cell)]
    except (ValueError, TypeError):
        values = []
    if len(values) != length or not all(math.isfinite(value) for value in values):
        raise ValueError(f"'{cell}' is no list of {length} numbers")
    return values


def dicom_affine(
    position: Sequence[float], orientation: Sequence[float], pixel_mm: Sequence[float], slice_mm: float
) -> Affine:
    """Return the affine from the index (column, row, slice) to RAS in mm, from attributes of the first slice.

    Args:
        position: Image Position (Patient) of slice 0, LPS in mm.
        orientation: Image Orientation (Patient): direction of rising column index, then of rising row index, LPS.
        pixel_mm: The two pixel distances.
        slice_mm: Distance of neighbouring slices; they follow the cross product of the two directions.

    Raises:
        ValueError: Distances are not positive, the two pixel distances differ (tables do not say which is which), or
            the directions are no unit vectors at right angles.
    """
    if not (min(*pixel_mm, slice_mm) > 0 and math.isfinite(slice_mm)):
        raise ValueError(f"voxels of {pixel_mm[0]} × {pixel_mm[1]} × {slice_mm} mm")
    if not math.isclose(pixel_mm[0], pixel_mm[1], rel_tol=_TOLERANCE):
        raise ValueError(f"pixel distances {pixel_mm[0]} and {pixel_mm[1]} mm differ, and nothing says which is which")
    across, down = tuple(orientation[:3]), tuple(orientation[3:])
    normal = (
        across[1] * down[2] - across[2] * down[1],
        across[2] * down[0] - across[0] * down[2],
        across[0] * down[1] - across[1] * down[0],
    )
    if any(abs(math.hypot(*axis) - 1) > _TOLERANCE for axis in (across, down, normal)):
        raise ValueError(f"the orientation {list(orientation)} is not two unit vectors at right angles")
    steps = (pixel_mm[1], pixel_mm[0], slice_mm)
    rows = []
    for axis, sign in enumerate((-1.0, -1.0, 1.0)):  # LPS -> RAS
        line = [
            sign * direction[axis] * step + 0.0 for direction, step in zip((across, down, normal), steps, strict=True)
        ]
        rows.append((line[0], line[1], line[2], sign * position[axis] + 0.0))
    return (*rows, (0.0, 0.0, 0.0, 1.0))


def repeated_numbers(numbers: Sequence[float]) -> float:
    """Return the one value of one or more positive numbers.

    Raises:
        ValueError: There is none, one is not positive, or two differ by more than a thousandth.
    """
    if not numbers or not all(math.isfinite(value) and value > 0 for value in numbers):
        raise ValueError(f"no positive distance in {list(numbers)}")
    if any(not math.isclose(one, other, rel_tol=_TOLERANCE) for one, other in combinations(numbers, 2)):
        raise ValueError(f"the distances {list(numbers)} differ")
    return numbers[0]
