"""A folder of pictures (PNG, JPEG), one per slice -> a volume of grey values without geometry.

Guarantee: slices are ordered by the number in their names, of which each must have exactly one place; all have one
size. Nothing says where they lie or which way they run, so the volume has no affine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.types import Intensity, Volume

if TYPE_CHECKING:
    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import VolumeFacts

_NUMBER = re.compile(r"\d+")
FULL_SCALE = 255


def numbered(files: Sequence[Path], where: Path) -> list[Path]:
    """Sort files by the last number of their names, as integers.

    Raises:
        UserError: A name has no number, or two have the same.
    """
    places: dict[int, Path] = {}
    for path in sorted(files):
        numbers = _NUMBER.findall(path.stem)
        if not numbers:
            raise UserError("The name of a slice has no number.", path, "Number the slices: 1.png, 2.png, ...")
        other = places.setdefault(int(numbers[-1]), path)
        if other is not path:
            what = f"Two slices have the number {int(numbers[-1])}: {other.name} and {path.name}."
            raise UserError(what, where, "Give the files of one series.")
    return [places[number] for number in sorted(places)]


def read_picture_slices(
    files: Sequence[Path], where: Path, config: StoredVolumeConfig, facts: VolumeFacts | None, *, exact: bool
) -> Volume:
    """Read slices saved as pictures: STORED 0 to 255; see `medvlp.io.read_volume`.

    Args:
        files: The pictures; other files beside them are left out unless `exact`.
        where: Their folder.
        config: HU cannot be asked for: pictures hold grey values.
        facts: May give the affine of the index (i, j, k): column, row, slice.
        exact: Whether every file must be a picture.

    Raises:
        UserError: A picture is broken, coloured, of more than 8 bits or of another size, or its place is unknown.
    """
    from medvlp.io.formats import volume_format
    from medvlp.io.grid import BadGeometry, Canvas, spacing_of
    from medvlp.io.limits import check_memory
    from medvlp.io.series import unrecognised

    pictures = [file for file in files if volume_format(file) == "picture"]
    strangers = [file for file in files if file not in pictures] if exact else unrecognised(files, pictures)
    if strangers:
        raise UserError("A file among the slices is no picture, or is damaged.", strangers[0], "Restore or remove it.")
    if config.intensity == "hu" or (facts is not None and facts.intensity is Intensity.HU):
        what = "Pictures hold grey values, not HU."
        raise UserError(what, where, "Set volume.intensity to auto or stored.")
    if len({file.parent for file in pictures}) > 1:
        raise UserError("The pictures lie in several folders.", where, "Give the folder of one volume.")
    ordered = numbered(pictures, where)
    first = _grey(ordered[0])
    shape = (len(ordered), *first.shape)
    check_memory(shape, where)
    affine = None if facts is None or facts.affine is None else np.asarray(facts.affine)[:, [2, 1, 0, 3]]
    try:
        canvas = Canvas(shape, affine)
    except BadGeometry as error:
        raise UserError(f"The geometry is unusable: {error}.", where, "Correct the data set's facts.") from None
    for k, path in enumerate(ordered):
        picture = first if k == 0 else _grey(path)
        if picture.shape != first.shape:
            sizes = f"{picture.shape[0]} x {picture.shape[1]} where the first has {first.shape[0]} x {first.shape[1]}"
            raise UserError(f"The slice has {sizes} pixels.", path, "Give the files of one series.")
        canvas.view[k] = picture
    provenance = {
        "path": str(where),
        "format": "pictures",
        "slices": len(ordered),
        "missing_numbers": _missing(ordered),
        "hu_applied": False,
        "intensity_source": "file",
        "full_scale": FULL_SCALE,
        "affine_source": None if affine is None else "data set",
        "straightened": None,
        "grid": canvas.record,
    }
    spacing = None if canvas.affine is None else spacing_of(canvas.affine)
    return Volume(canvas.array, canvas.affine, spacing, Intensity.STORED, provenance)


def _missing(ordered: Sequence[Path]) -> int:
    numbers = [int(_NUMBER.findall(path.stem)[-1]) for path in ordered]
    return numbers[-1] - numbers[0] + 1 - len(numbers)


def _grey(path: Path) -> np.ndarray:
    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.io.raster import read_raster

    radiograph = read_raster(path.read_bytes(), path, StoredImageConfig())
    if radiograph.intensity is not Intensity.UNIT:
        raise UserError("The slice has more than 8 bits.", path, "Convert the slices to DICOM or NIfTI.")
    return np.rint(radiograph.array * FULL_SCALE).astype(np.int16)
