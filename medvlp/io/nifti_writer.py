"""Volumes, masks and heat maps -> NIfTI-1 files.

Guarantee: the file says in sform and qform where its voxels are in the patient (NIfTI counts towards right, anterior,
superior, as medvlp does; ITK and DICOM readers negate the first two). A file appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.io.grid import check_affine

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Shaped


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
    import numpy as np

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
