"""Label maps in files (NIfTI, MHD, NRRD), piece by piece.

Guarantee: values are whole numbers from 0 to 65535, or there is an error; no more than a piece of the file is in memory
at a time, unless the whole map is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.formats import volume_format

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Integer, Shaped, UInt16

LARGEST_VALUE = 65535


@dataclass(frozen=True)
class LabelMap:
    """An open label map: shape and affine (None: not stated) of the order of the bytes, slowest axis first.

    `planes` yields the place along the slowest axis and its values, and can be read once.
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"] | None
    planes: Iterator[tuple[int, Integer[np.ndarray, "b c"]]]


@contextmanager
def open_label_map(path: Path, free: int) -> Iterator[LabelMap]:
    """Open a NIfTI, MHD or NRRD label map; all of it must be whole when it is left.

    Args:
        path: The file.
        free: Bytes that it may unpack to in any case.

    Raises:
        UserError: The file is damaged, or its values are no labels.
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

    def planes(stream: Any) -> Iterator[tuple[int, Integer[np.ndarray, "b c"]]]:
        for place, part in pieces(stream, header.shape, header.dtype, path):
            for offset, plane in enumerate(part):
                yield place.start + offset, _whole(plane, scaling, path)

    with opened as stream:
        yield LabelMap(header.shape, header.affine, planes(stream))


def read_label_map(path: Path, free: int) -> UInt16[np.ndarray, "a b c"]:
    """Read the values of a label map in the order of the bytes; see `open_label_map`."""
    with open_label_map(path, free) as label_map:
        values = np.empty(label_map.shape, dtype=np.uint16)
        for index, plane in label_map.planes:
            values[index] = plane
    return values


def count_values(labels: Integer[np.ndarray, "d h w"], length: int) -> Int[np.ndarray, " n"]:
    """Return how many voxels have each value below `length`; by plane, since counting takes 8 bytes a voxel."""
    counts = np.zeros(length, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=length)
    return counts


def _whole(part: Shaped[np.ndarray, "b c"], scaling: tuple[float, float], path: Path) -> Integer[np.ndarray, "b c"]:
    if scaling != (1.0, 0.0):
        part = part * scaling[0] + scaling[1]
    if part.dtype.kind == "f":
        if not np.isfinite(part).all() or np.abs(part - np.rint(part)).max() > 1e-3:
            raise UserError("The mask holds fractions, so it is no label map.", path, "Convert it to whole numbers.")
        part = np.rint(part)
    if part.min() < 0 or part.max() > LARGEST_VALUE:
        what = f"The mask holds values from {part.min():.6g} to {part.max():.6g}; labels run from 0 to {LARGEST_VALUE}."
        raise UserError(what, path, "Use the label map, not the image.")
    return part.astype(np.uint16)
