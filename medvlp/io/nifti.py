"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz) -> volumes.

Guarantee: voxels are unpacked piece by piece straight to their place, never more than the header declares and the file
can hold; the gzip checksum is verified. A file without sform and qform has no orientation, so it has no affine.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.limits import FREE_BYTES, LARGEST_REST, check_size

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import Volume, VolumeFacts

_FIX = "Restore the file from its source, or leave it out."
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_AGREEMENT_MM = 1.0
_LATEST_START = 2**26


@dataclass(frozen=True)
class NiftiHeader:
    """What the header says; `shape` and `affine` in the order of the bytes, slowest axis (k) first."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    scaling: tuple[float, float]
    affine: Float[np.ndarray, "4 4"] | None
    facts: dict[str, Any]
    behind: int = 0
    """Bytes of further channels that follow."""


def read_nifti(path: Path, config: StoredVolumeConfig, facts: VolumeFacts | None) -> Volume:
    """Read a NIfTI file; see `medvlp.io.read_volume`.

    Raises:
        UserError: It is truncated, damaged, not 3D, or its values or geometry are unusable.
    """
    from medvlp.io.intensity import file_meaning
    from medvlp.io.streams import fill_volume

    header = read_nifti_header(path, channel=None if facts is None else facts.channel)
    meaning = file_meaning(header.scaling, config, facts, path)
    with open_data(path, header) as stream:
        return fill_volume(
            stream, header.shape, header.dtype, header.affine, meaning, config, facts, path,
            {"format": "nifti", **header.facts},
        )  # fmt: skip


def read_nifti_header(path: Path, free: int = FREE_BYTES, channel: int | None = None) -> NiftiHeader:
    """Read and check the header.

    Args:
        path: The file.
        free: Unpacked bytes that are allowed whatever the size of the file.
        channel: Which volume of a file with four dimensions, from 0.

    Raises:
        UserError: It is damaged or truncated, or not of one 3D array of real numbers.
    """
    import nibabel

    try:
        image = cast(Any, nibabel.load(path))
        proxy, raw = image.dataobj, image.header
        if not isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image)) or "n+" not in str(raw["magic"]):
            raise ValueError("a header apart from its data, or no NIfTI")
        shape, dtype, offset = tuple(int(n) for n in proxy.shape), np.dtype(proxy.dtype), int(proxy.offset)
        scaling = float(proxy.slope), float(proxy.inter)
        affine, facts = _affine(image, path)
    except Exception as error:  # whatever a parser throws at a broken file
        reason = one_line(error)
        raise UserError(f"The NIfTI header cannot be used ({type(error).__name__}: {reason}).", path, _FIX) from None
    stored, start = shape, offset
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channel is not None and len(shape) == 4 and 0 <= channel < shape[3]:
        stored, shape, facts = shape, shape[:3], {**facts, "channel": channel}
        offset += channel * math.prod(shape) * dtype.itemsize
    elif channel:
        raise UserError(f"Channel {channel} is asked for, and the file has none.", path, "Use the original file.")
    if len(shape) != 3:
        sides = " x ".join(str(n) for n in shape)
        raise UserError(
            f"The file has {len(shape)} dimensions ({sides}); 3 are needed.", path, "Save one volume of it."
        )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"The voxels are of type {dtype}; real numbers are needed.", path, "Convert the file to int16.")
    if not np.isfinite(scaling).all() or scaling[0] == 0 or max(map(abs, scaling)) > 1e9:
        raise UserError(f"The header scales voxels by {scaling[0]:.6g} and {scaling[1]:.6g}.", path, _FIX)
    if not 0 <= start <= _LATEST_START:
        raise UserError(f"The header says that the voxels start at byte {start}.", path, _FIX)
    size = path.stat().st_size
    packed = _packed(path)
    declared = check_size(stored, dtype.itemsize, size if packed else size - start, path, compressed=packed, free=free)
    i, j, k = shape
    behind = start + declared - offset - i * j * k * dtype.itemsize
    return NiftiHeader((k, j, i), dtype, offset, scaling, affine, facts, behind)


def _affine(image: Any, path: Path) -> tuple[Float[np.ndarray, "4 4"] | None, dict[str, Any]]:
    """Return the affine of the index (k, j, i) in mm, from sform, else qform, and what is worth recording.

    Raises:
        ValueError: It states none that can be used.
    """
    header = image.header
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    source = "sform" if sform > 0 else "qform" if qform > 0 else None
    facts: dict[str, Any] = {"affine_source": source}
    if source is None:
        return None, facts
    factor = _UNITS_MM.get(int(header["xyzt_units"]) & 7)
    if factor is None:
        raise ValueError("its unit of length is unknown")
    if source == "qform":
        _check_distances(path, header)
    matrix = np.asarray(header.get_sform() if sform > 0 else header.get_qform(), dtype=np.float64)
    if sform > 0 and qform > 0:
        corner = np.asarray([*(n - 1 for n in image.shape[:3]), 1.0])
        other = np.asarray(header.get_qform(), dtype=np.float64)
        apart = np.linalg.norm(((matrix - other) @ np.diag([*corner[:3], 1.0]))[:3], axis=0).max()
        facts["sform_qform_agree"] = bool(apart * factor <= _AGREEMENT_MM)
    matrix[:3] *= factor
    return matrix[:, [2, 1, 0, 3]], facts


def _check_distances(path: Path, header: Any) -> None:
    """Raise `ValueError` unless the file's distances of voxels are above 0; nibabel has changed those of `header`."""
    with _unpacked(path) as stream:
        told = type(header)(stream.read(len(header.binaryblock)), check=False)["pixdim"][1:4]
    if not (told > 0).all():
        raise ValueError(f"its distances of voxels are {' x '.join(f'{value:.4g}' for value in told)}")


def _unpacked(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if _packed(path) else path.open("rb"))


def _packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def open_data(path: Path, header: NiftiHeader) -> Iterator[BinaryIO]:
    """Open the file at its first voxel; at the end, what follows must be whole.

    Raises:
        UserError: The compressed data are damaged, cut off, or go on far beyond the voxels.
    """
    packed = _packed(path)
    try:
        with _unpacked(path) as stream:
            stream.seek(header.offset)
            yield stream
            if packed:
                _read_on(stream, header.behind)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"The compressed file is truncated or damaged: {one_line(error)}.", path, _FIX) from None


def _read_on(stream: BinaryIO, behind: int) -> None:
    """Read to the end, so that the checksum is compared; `behind` bytes of other channels may follow."""
    while behind > 0 and (piece := stream.read(min(behind, 2**20))):
        behind -= len(piece)
    if len(stream.read(LARGEST_REST + 1)) > LARGEST_REST:
        raise zlib.error("more voxels follow than the header declares")
