"""NumPy files (.npy, .npz) -> volumes: voxels without geometry, which the data set's card must state.

Guarantee: no pickle is ever loaded, and an archive's member is unpacked no further than its own header declares.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.limits import check_size

if TYPE_CHECKING:
    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import Volume, VolumeFacts

_FIX = "Restore the file from its source, or leave it out."
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path, kind: str, config: StoredVolumeConfig, facts: VolumeFacts | None) -> Volume:
    """Read the one 3D array of a NumPy file, axes (slices, rows, columns); see `medvlp.io.read_volume`.

    Raises:
        UserError: The file is damaged or truncated, holds several arrays, or no 3D array of numbers.
    """
    from medvlp.io.intensity import file_meaning
    from medvlp.io.streams import fill_volume

    meaning = file_meaning((1.0, 0.0), config, facts, path)
    try:
        with _open(path, kind) as (stream, available, facts_of_file):
            shape, dtype = _header(stream)
            check_size(shape, dtype.itemsize, available, path, compressed=kind == "npz")
            provenance = {"format": kind, "affine_source": None, **facts_of_file}
            volume = fill_volume(stream, shape, dtype, None, meaning, config, facts, path, provenance)
            if stream.read(1):
                raise ValueError("bytes follow the array")
            return volume
    except UserError:
        raise
    except Exception as error:  # whatever a parser throws at a broken file
        raise UserError(f"The NumPy file cannot be used: {one_line(error)}.", path, _FIX) from None


@contextlib.contextmanager
def _open(path: Path, kind: str) -> Iterator[tuple[BinaryIO, int, dict[str, str]]]:
    if kind == "npy":
        with path.open("rb") as file:
            yield file, path.stat().st_size, {}
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ValueError(f"it holds {len(members)} arrays where one is needed")
        member = members[0]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zlib.error("its compression is not read")
        with archive.open(member) as stream:
            yield cast(BinaryIO, stream), member.compress_size, {"member": Path(member.filename).stem[:32]}


def _header(stream: BinaryIO) -> tuple[tuple[int, int, int], np.dtype]:
    reader = _READERS.get(np.lib.format.read_magic(stream))
    if reader is None:
        raise ValueError("its version of the NumPy format is not read")
    shape, fortran, dtype = reader(stream)
    if fortran:
        raise ValueError("its array is in Fortran order")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError("its array does not hold real numbers")
    if len(shape) == 4 and shape[0] == 1:  # one channel before the slices, as some tools write it
        shape = shape[1:]
    if len(shape) != 3:
        raise ValueError(f"its array has {len(shape)} dimensions where 3 are needed")
    return (int(shape[0]), int(shape[1]), int(shape[2])), dtype
