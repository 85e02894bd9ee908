"""Volumes, masks and heat maps -> NIfTI-1 files.

Guarantee: the file says in sform and qform where its voxels are in the patient (NIfTI counts towards right, anterior,
superior, as medvlp does; ITK and DICOM readers negate the first two). Values on a volume that is a file's own array,
only with its axes turned, get the file's shape and affine, so that they lie over it index by index. A file appears
whole or not at all, and nothing of another file's header gets into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.grid import check_affine

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from medvlp.types import Volume

RAS_AXES = "SAR"
"""Where the axes d, h, w of a volume run to."""
_OPPOSITE = {"S": "I", "A": "P", "R": "L", "I": "S", "P": "A", "L": "R"}


def write_nifti(path: str | Path, array: Shaped[np.ndarray, "d h w"], affine: Float[np.ndarray, "4 4"]) -> Path:
    """Write an array on a grid of a patient.

    Args:
        path: Ends in .nii or .nii.gz.
        array: Voxels, in the file in the order (w, h, d).
        affine: From the array index (d, h, w, 1) to RAS in mm.

    Returns:
        The file.

    Raises:
        ValueError: The name has another ending.
        BadGeometry: The affine is unusable.
    """
    import nibabel

    path = Path(path)
    ending = next((ending for ending in (".nii.gz", ".nii") if path.name.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"the name of a NIfTI file ends in .nii or .nii.gz: {path.name}")
    own = check_affine(affine)[:, [2, 1, 0, 3]]
    image: Any = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), own, dtype=array.dtype)
    image.set_sform(own, code=1)
    image.set_qform(own, code=1)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f".{path.name.removesuffix(ending)}.part{ending}")
    nibabel.save(image, part)
    part.replace(path)
    return path


def write_on_volume(path: Path, values: Shaped[np.ndarray, "d h w"], volume: Volume) -> None:
    """Write values on the voxels of a volume, on the grid of its file where that is only turned; else on its own.

    Args:
        path: Ends in .nii or .nii.gz; its folder is made.
        values: Of a type that NIfTI has (float32, int16, uint8, uint16).
        volume: The volume, as `read_volume` gave it.

    Raises:
        UserError: The volume has no geometry, or the file cannot be written.
    """
    if volume.affine is None:
        raise UserError(
            "The volume has no geometry: nothing says where a value lies in the patient.", path, "Give a file with it."
        )
    if values.shape != volume.array.shape:
        raise ValueError(f"values of {values.shape} do not lie on a volume of {volume.array.shape}")
    array, affine = on_file_grid(values, volume.affine, volume.provenance.get("grid"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, array, affine)
    except OSError as error:
        raise UserError(
            f"The file cannot be written: {error.strerror or error}.", path, "Free space, or another place."
        ) from error


def on_file_grid(
    values: Shaped[np.ndarray, "d h w"], affine: Float[np.ndarray, "4 4"], grid: dict[str, Any] | None
) -> tuple[Shaped[np.ndarray, "a b c"], Float[np.ndarray, "4 4"]]:
    """Return values and affine with the axes as in the file, if turning them is all that lies between.

    Args:
        values: On the voxels of a volume.
        affine: Of the volume, from (d, h, w, 1) to mm.
        grid: The file's grid as `read_volume` records it: `shape`, `affine`, and `axes`, where each runs to; the
            slowest first.
    """
    if grid is None or not grid.get("axes") or not grid.get("affine"):
        return values, affine
    order, flips = [], []
    for letter in grid["axes"]:
        flipped = letter not in RAS_AXES
        order.append(RAS_AXES.index(_OPPOSITE[letter] if flipped else letter))
        flips.append(flipped)
    turned = values.transpose(order)
    turned = turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for axis, (own, flip) in enumerate(zip(order, flips, strict=True)):
        back[own, axis] = -1 if flip else 1
        back[own, 3] = values.shape[own] - 1 if flip else 0
    found = affine @ back
    if list(turned.shape) != list(grid["shape"]) or not np.allclose(found, grid["affine"], rtol=1e-5, atol=1e-3):
        return values, affine
    return turned, np.array(grid["affine"], dtype=np.float64)
