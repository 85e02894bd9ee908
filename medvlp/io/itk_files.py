"""MetaImage (MHD with RAW, MHA) and NRRD files -> volumes.

Guarantee: only headers that state geometry in mm along named directions give an affine; pixel data are read from the
file itself or from one file in the same folder, never from elsewhere. Sources: the MetaIO and NRRD format definitions.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.grid import LPS_TO_RAS
from medvlp.io.limits import FREE_BYTES, LARGEST_REST, check_size

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import Volume, VolumeFacts

_FIX = "Restore the file from its source, or leave it out."
_LONGEST_HEADER = 65536
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_META_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
}
_MM = ("mm", "", "?")
"""Units of length that are mm, or not stated: mm is then the rule of both formats."""
_SPACES = {
    "left-posterior-superior": LPS_TO_RAS, "lps": LPS_TO_RAS,
    "right-anterior-superior": np.eye(4), "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]), "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}  # fmt: skip


@dataclass(frozen=True)
class ItkHeader:
    """What the header says; `shape` and `affine` in the order of the bytes, slowest axis (k) first."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: Float[np.ndarray, "4 4"] | None
    data: Path
    offset: int
    encoding: str
    """raw, gzip, zlib or bzip2."""


def read_itk(path: Path, kind: str, config: StoredVolumeConfig, facts: VolumeFacts | None) -> Volume:
    """Read an MHD, MHA or NRRD file; see `medvlp.io.read_volume`.

    Raises:
        UserError: Header or data are damaged, truncated or of a kind that is not read.
    """
    from medvlp.io.intensity import file_meaning
    from medvlp.io.streams import fill_volume

    header = read_itk_header(path, kind)
    meaning = file_meaning((1.0, 0.0), config, facts, path)
    with open_itk_data(path, header) as stream:
        return fill_volume(
            stream, header.shape, header.dtype, header.affine, meaning, config, facts, path,
            {"format": kind, "affine_source": None if header.affine is None else "file"},
        )  # fmt: skip


def read_itk_header(path: Path, kind: str, free: int = FREE_BYTES) -> ItkHeader:
    """Read and check the header of a `metaimage` or `nrrd` file.

    Raises:
        UserError: It is damaged, of a kind that is not read, or declares more than its data file can hold.
    """
    try:
        header = _read_meta(path) if kind == "metaimage" else _read_nrrd(path)
        size = header.data.stat().st_size
    except OSError as error:
        what = f"The data file of the header cannot be opened: {error.strerror}."
        raise UserError(what, path, "Put header and data into one folder, with the names that they had.") from None
    except Exception as error:  # whatever a parser throws at a broken file
        raise UserError(f"The header cannot be used: {one_line(error)}.", path, _FIX) from None
    packed = header.encoding != "raw"
    itemsize = header.dtype.itemsize
    check_size(header.shape, itemsize, size - max(header.offset, 0), path, compressed=packed, free=free)
    return header


def _beside(path: Path, name: str) -> Path:
    """Return the data file that a header names: in the same folder, whatever the header says."""
    if not name or Path(name).name != name or name in (".", ".."):
        raise ValueError("its data file lies in another folder")
    return path.with_name(name)


def _read_meta(path: Path) -> ItkHeader:
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        if end < 0:
            raise ValueError("it names no ElementDataFile")
        key, equals, value = head[position:end].decode("ascii").partition("=")
        if not equals:
            raise ValueError("a line is no key = value")
        key = _META_ALIASES.get(key.strip(), key.strip())
        if key in fields:
            raise ValueError("it states one of its keys twice")
        fields[key] = value.strip()
        position = end + 1
    if int(fields["NDims"]) != 3 or int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise ValueError("it is not of one 3D array of single numbers")
    if fields.get("BinaryData", "True").lower() != "true":
        raise ValueError("its voxels are text")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    kind = _META_TYPES.get(fields["ElementType"])
    if kind is None:
        raise ValueError("its ElementType is unknown")
    packed = fields.get("CompressedData", "False").lower() == "true"
    local = fields["ElementDataFile"] in ("LOCAL", "Local", "local")
    header_size = int(fields.get("HeaderSize", "0"))
    shape = tuple(int(n) for n in fields["DimSize"].split())
    if len(shape) != 3 or (local and header_size) or header_size < -1:
        raise ValueError("its DimSize or HeaderSize is unusable")
    return ItkHeader(
        (shape[2], shape[1], shape[0]),
        np.dtype(kind).newbyteorder(">" if big else "<"),
        _meta_affine(fields),
        path if local else _beside(path, fields["ElementDataFile"]),
        position if local else header_size,
        "zlib" if packed else "raw",
    )


def _meta_affine(fields: dict[str, str]) -> Float[np.ndarray, "4 4"] | None:
    """Return the affine of (k, j, i); None where neither offset nor directions are stated."""
    missing = {"Offset", "TransformMatrix", "ElementSpacing"} - set(fields)
    if {"Offset", "TransformMatrix"} <= missing:
        return None
    if missing:
        raise ValueError(f"it states only a part of its geometry; {', '.join(sorted(missing))} is missing")
    if fields.get("DistanceUnits", "mm") not in _MM:
        raise ValueError("its geometry is not in mm")
    directions = np.asarray([float(n) for n in fields["TransformMatrix"].split()]).reshape(3, 3)
    spacing = np.asarray([float(n) for n in fields["ElementSpacing"].split()])
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError("its ElementSpacing is not three positive numbers")
    matrix = np.eye(4)
    matrix[:3, :3] = directions.T * spacing
    matrix[:3, 3] = [float(n) for n in fields["Offset"].split()]
    return (LPS_TO_RAS @ matrix)[:, [2, 1, 0, 3]]


def _read_nrrd(path: Path) -> ItkHeader:
    import nrrd

    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and b"data file" not in head and b"datafile" not in head:
        raise ValueError("it has no end, or is longer than 64 KiB")
    stop = end.end() if end else len(head)
    fields = nrrd.read_header(io.BytesIO(head[:stop]))
    sizes = [int(n) for n in fields["sizes"]]
    if int(fields["dimension"]) != 3 or len(sizes) != 3:
        raise ValueError("it is not of one 3D array of single numbers")
    code = nrrd.reader._TYPEMAP_NRRD2NUMPY.get(fields["type"])
    if code is None or np.dtype(code).kind not in "iuf":
        raise ValueError("its type is not one of whole or real numbers")
    dtype = np.dtype(code)
    if dtype.itemsize > 1:
        if fields.get("endian") not in ("little", "big"):
            raise ValueError("it states no byte order")
        dtype = dtype.newbyteorder("<" if fields["endian"] == "little" else ">")
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}.get(fields["encoding"])
    if encoding is None or fields.get("line skip", fields.get("lineskip", 0)):
        raise ValueError("its encoding is not read")
    name = fields.get("data file", fields.get("datafile"))
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    if skip < -1 or (skip and encoding != "raw"):
        raise ValueError("its byte skip is not read")
    data = path if name is None else _beside(path, str(name))
    start = -1 if skip == -1 else skip + (stop if name is None else 0)
    return ItkHeader((sizes[2], sizes[1], sizes[0]), dtype, _nrrd_affine(fields), data, start, encoding)


def _nrrd_affine(fields: dict[str, Any]) -> Float[np.ndarray, "4 4"] | None:
    """Return the affine of (k, j, i); None where neither space nor directions nor origin are stated."""
    missing = {"space", "space directions", "space origin"} - set(fields)
    if len(missing) == 3:
        return None
    if missing:
        raise ValueError(f"it states only a part of its geometry; {', '.join(sorted(missing))} is missing")
    space = _SPACES.get(str(fields["space"]).lower())
    if space is None:
        raise ValueError("its space is not one of the patient")
    if not set(fields.get("space units", ())) <= {*_MM}:
        raise ValueError("its geometry is not in mm")
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(fields["space directions"], dtype=np.float64).T
    matrix[:3, 3] = fields["space origin"]
    return (space @ matrix)[:, [2, 1, 0, 3]]


@contextlib.contextmanager
def open_itk_data(path: Path, header: ItkHeader) -> Iterator[BinaryIO]:
    """Open the data at the first voxel; compressed ones must be whole to their end.

    Raises:
        UserError: The data cannot be opened or are damaged.
    """
    try:
        with header.data.open("rb") as file:
            voxels = int(np.prod(header.shape)) * header.dtype.itemsize
            start = header.data.stat().st_size - voxels if header.offset == -1 else header.offset
            file.seek(start)
            if header.encoding == "raw":
                yield file
                return
            stream = _unpacker(header.encoding, file)
            yield stream
            _read_on(stream)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"The voxels are truncated or damaged: {one_line(error)}.", path, _FIX) from None


def _read_on(stream: BinaryIO) -> None:
    """Read to the end, so that the checksum is compared."""
    rest = 0
    while piece := stream.read(LARGEST_REST):
        rest += len(piece)
        if rest > LARGEST_REST:
            raise zlib.error("more voxels follow than the header declares")


def _unpacker(encoding: str, file: BinaryIO) -> BinaryIO:
    if encoding == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    return cast(BinaryIO, bz2.BZ2File(file) if encoding == "bzip2" else _Zlib(file))


class _Zlib(io.RawIOBase):
    """A zlib stream as a file; unpacks no more than is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._inflater = file, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        wanted = len(room)
        while wanted and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(2**16)
            if not packed:
                raise EOFError("the compressed data end too early")
            out = self._inflater.decompress(packed, wanted)
            if out:
                room[: len(out)] = out
                return len(out)
        return 0
