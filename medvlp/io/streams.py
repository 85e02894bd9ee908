"""A stream of voxels -> a canonical volume, piece by piece: at most one copy of the volume is ever in memory.

Guarantee: exactly the declared number of bytes is read; fewer is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medvlp.errors import UserError
from medvlp.io.grid import LARGEST_SHEAR, BadGeometry, Canvas, shear_of, spacing_of
from medvlp.io.limits import check_memory
from medvlp.io.values import BadValues
from medvlp.types import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Shaped

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.io.intensity import Meaning
    from medvlp.types import VolumeFacts

_PIECE_BYTES = 8 * 2**20
_FIX = "Restore the file from its source, or leave it out."


def pieces(
    stream: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype, path: Path
) -> Iterator[tuple[slice, Shaped[np.ndarray, "n h w"]]]:
    """Yield parts of an array along its slowest axis, with their place; each is overwritten by the next.

    Raises:
        UserError: The stream ends too early.
    """
    slowest, *rest = shape
    row = int(np.prod(rest)) * dtype.itemsize
    step = max(1, _PIECE_BYTES // row)
    buffer = np.empty((min(step, slowest), *rest), dtype=dtype)
    for start in range(0, slowest, step):
        count = min(step, slowest - start)
        part = buffer[:count]
        if not _fill(stream, part.data.cast("B")):
            raise UserError("The file is truncated: its voxels end before the volume does.", path, _FIX)
        yield slice(start, start + count), part


def _fill(stream: BinaryIO, room: memoryview) -> bool:
    done = 0
    while done < len(room):
        count = stream.readinto(room[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def fill_volume(
    stream: BinaryIO,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    affine: Float[np.ndarray, "4 4"] | None,
    meaning: Meaning,
    config: StoredVolumeConfig,
    facts: VolumeFacts | None,
    path: Path,
    provenance: dict[str, Any],
) -> Volume:
    """Read the voxels of a file to a volume.

    Args:
        stream: At the first voxel.
        shape: In the order of the bytes, slowest axis first.
        dtype: Of the bytes.
        affine: From the index in that order to RAS in mm; None where the file does not say.
        meaning: Of the values.
        config: `tilt` decides about sheared grids.
        facts: Its affine (for the index i, j, k, fastest first) replaces the file's, which must have its size.
        path: The file.
        provenance: What the format's reader knows.

    Raises:
        UserError: The voxels end too early, values or geometry are unusable, or `facts` are those of another volume.
    """
    if facts is not None and facts.size is not None and shape != facts.size[::-1]:
        own, told = (" x ".join(map(str, size)) for size in (shape[::-1], facts.size))
        what = f"The file has {own} columns, rows and slices, but the data set's table says {told}."
        raise UserError(what, path, "Download file and table again: their geometry belongs to another volume.")
    if facts is not None and facts.affine is not None:
        affine = np.asarray(facts.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
        provenance = {**provenance, "affine_source": "data set"}
    check_memory(shape, path)
    converter = meaning.converter()
    try:
        canvas = Canvas(shape, affine)
        if canvas.affine is not None and shear_of(canvas.affine) > LARGEST_SHEAR:
            raise BadGeometry(f"its axes are not perpendicular (cosine {shear_of(canvas.affine):.3f})")
        for place, part in pieces(stream, shape, dtype, path):
            for offset, values in enumerate(converter.convert(part)):
                canvas.put(place.start + offset, values)
    except BadGeometry as error:
        raise UserError(
            f"The geometry is unusable: {error}.", path, "Correct the file's affine, or resample it."
        ) from None
    except BadValues as error:
        raise UserError(str(error), path, error.fix) from None
    record = {"path": str(path), **provenance, **meaning.record, **converter.record}
    spacing = None if canvas.affine is None else spacing_of(canvas.affine)
    record |= {"straightened": None, "grid": canvas.record}
    return Volume(canvas.array, canvas.affine, spacing, meaning.intensity, record)
