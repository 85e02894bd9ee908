"""Opening of DICOM files without trusting them: headers alone, or whole, with a bound on what may be unpacked.

Guarantee: only the attributes asked for are read; a deflated file is unpacked up to a bound; pydicom's warnings, which
quote values, are silent. Failures are a `ValueError` (or pydicom's own error) that the caller turns into a `UserError`.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pydicom import dcmread, uid

from medvlp.io.dicom_pixels import quiet_pydicom
from medvlp.io.limits import inflated_bound

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_HEAD = 65536
_PREAMBLE = 132
_LONG_VRS = (b"OB", b"OW", b"UN", b"SQ", b"UT", b"OD", b"OF", b"OL", b"OV", b"UC", b"UR", b"SV", b"UV")
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()
_PIXEL_DATA = {True: b"\xe0\x7f\x10\x00", False: b"\x7f\xe0\x00\x10"}
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class PixelPlace:
    """Where a file's pixel data are: `length` is None for encapsulated (compressed) data.

    `in_file` is False where the file had to be inflated first, so that `offset` is none of the file's own.
    """

    offset: int
    length: int | None
    in_file: bool


def one_line(error: Exception) -> str:
    """Return the reason up to its first quotation, which in a broken file can hold anything, identifiers included."""
    reason = re.split(r"['\"]", " ".join(str(error).split())[:200])[0]
    return re.sub(r"[^ -~]", "", reason).rstrip(" .:(") or "unreadable value"


def inflated(data: bytes) -> bytes:
    """Return a DICOM file as it is, or, if it is deflated, as Explicit VR Little Endian.

    Raises:
        ValueError: The deflated part is broken, cut off, or unpacks to far more than an image would.
    """
    if _DEFLATED not in data[:_HEAD]:
        return data
    place, start = _transfer_syntax_place(data)
    if place is None:
        return data
    bound = inflated_bound(len(data))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(memoryview(data)[start:], bound)
    except zlib.error:
        raise ValueError("its deflated part is damaged") from None
    if inflater.unconsumed_tail:
        raise ValueError(f"its deflated part unpacks to more than {bound // 2**20} MiB")
    if not inflater.eof:
        raise ValueError("truncated: its deflated part ends too early")
    syntax = uid.ExplicitVRLittleEndian.encode().ljust(len(_DEFLATED), b"\0")
    return b"".join((data[:place], syntax, data[place + len(syntax) : start], body))


def _transfer_syntax_place(data: bytes) -> tuple[int | None, int]:
    """Walk the file meta group; return where the deflated transfer syntax stands in it (or None), and its end."""
    position = _PREAMBLE if data[128:_PREAMBLE] == b"DICM" else 0
    place = None
    while data[position : position + 2] == b"\x02\x00":
        vr = data[position + 4 : position + 6]
        if vr in _LONG_VRS:
            start, length = position + 12, int.from_bytes(data[position + 8 : position + 12], "little")
        elif vr.isalpha():
            start, length = position + 8, int.from_bytes(data[position + 6 : position + 8], "little")
        else:
            start, length = position + 8, int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position + 2 : position + 4] == b"\x10\x00" and data[start : start + len(_DEFLATED)] == _DEFLATED:
            place = start
        position = start + length
    return place, position


def parse(data: bytes, tags: Sequence[str]) -> Dataset:
    """Parse a whole file that is in memory; values are converted here, so that later access is quiet.

    Raises:
        ValueError: It is deflated beyond the bound. pydicom raises errors of many kinds for a broken file.
    """
    plain = inflated(data)
    with quiet_pydicom():
        dataset = dcmread(io.BytesIO(plain), force=True, specific_tags=list(tags))
        for _ in dataset.iterall():
            pass
    _name_transfer_syntax(dataset, deflated=plain is not data)
    return dataset


def open_header(path: Path, tags: Sequence[str]) -> tuple[Dataset, PixelPlace | None]:
    """Parse the header of a file and find its pixel data, without reading them.

    Raises:
        OSError: The file cannot be opened.
        ValueError: As `parse`.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        in_file, source = True, cast(BinaryIO, file)
        if _DEFLATED in head:
            data = head + file.read()
            plain = inflated(data)
            in_file, source = plain is data, io.BytesIO(plain)
        source.seek(0)
        with quiet_pydicom():
            dataset = dcmread(source, force=True, stop_before_pixels=True, specific_tags=list(tags))
            for _ in dataset.iterall():
                pass
            place = _pixel_place(source, dataset, in_file)
    _name_transfer_syntax(dataset, deflated=not in_file)
    return dataset, place


def _pixel_place(source: BinaryIO, dataset: Dataset, in_file: bool) -> PixelPlace | None:
    implicit, little = dataset.original_encoding
    start = source.tell()
    element = source.read(12)
    if element[:4] != _PIXEL_DATA[bool(little)]:
        return None
    order = "little" if little else "big"
    at, size = (4, 8) if implicit else (8, 12)
    length = int.from_bytes(element[at : at + 4], order)  # type: ignore[arg-type]
    return PixelPlace(start + size, None if length == _UNDEFINED else length, in_file)


def _name_transfer_syntax(dataset: Dataset, *, deflated: bool) -> None:
    """Give the file's own transfer syntax back to an inflated dataset, and the one found to one that has none."""
    if deflated:
        dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    elif "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        assumed = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = assumed if little else uid.ExplicitVRBigEndian
