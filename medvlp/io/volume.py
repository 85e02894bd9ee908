"""Any file or folder that holds one volume -> that volume in RAS, resampled and cropped as the configuration says.

Guarantee: a format is told by content, not by name; each reader gives its geometry and intensity or an error. The
provenance holds the file's own grid, so that masks on it can be brought to the volume's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp.errors import UserError
from medvlp.io.formats import volume_format

if TYPE_CHECKING:
    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import Volume, VolumeFacts


def read_volume(
    path: str | Path,
    config: StoredVolumeConfig | None = None,
    *,
    facts: VolumeFacts | None = None,
    files: Sequence[Path] = (),
) -> Volume:
    """See `medvlp.io.read_volume`."""
    from medvlp.config.preprocessing import StoredVolumeConfig

    path, config = Path(path), config or StoredVolumeConfig()
    volume = _read(path, config, facts, [Path(file) for file in files])
    if config.spacing_mm is not None:
        from medvlp.io.resample import resample

        volume = resample(volume, config.spacing_mm)
    if config.crop == "body":
        from medvlp.io.body import crop_to_body

        volume = crop_to_body(volume)
    return volume


def _read(path: Path, config: StoredVolumeConfig, facts: VolumeFacts | None, files: Sequence[Path]) -> Volume:
    if files or path.is_dir():
        return _read_files(path, config, facts, files)
    kind = volume_format(path)
    if kind == "dicom":
        from medvlp.io.dicom_series import read_series

        return read_series([path], path, config, facts, exact=True)
    if kind == "nifti":
        from medvlp.io.nifti import read_nifti

        return read_nifti(path, config, facts)
    if kind in ("metaimage", "nrrd"):
        from medvlp.io.itk_files import read_itk

        return read_itk(path, kind, config, facts)
    if kind in ("npy", "npz"):
        from medvlp.io.arrays import read_array

        return read_array(path, kind, config, facts)
    if kind == "picture":
        raise UserError("A picture is no volume.", path, "Give the folder that holds the pictures of all slices.")
    what = "The file is empty." if kind == "empty" else "The file holds no volume in a known format."
    raise UserError(what, path, "Known are DICOM, NIfTI, MHD, NRRD, NPZ, NPY and folders of DICOM, PNG or JPEG.")


def _read_files(path: Path, config: StoredVolumeConfig, facts: VolumeFacts | None, files: Sequence[Path]) -> Volume:
    from medvlp.io.series import files_under

    found = list(files) or files_under(path)
    kinds = {volume_format(file) for file in found}
    if "dicom" in kinds:
        from medvlp.io.dicom_series import read_series

        return read_series(found, path, config, facts, exact=bool(files))
    if "picture" in kinds:
        from medvlp.io.picture_slices import read_picture_slices

        return read_picture_slices(found, path, config, facts, exact=bool(files))
    raise UserError(
        "The folder holds neither DICOM nor picture slices.", path, "Name the file of the volume, or another folder."
    )
