"""What a volume needs to know of one DICOM slice or frame, as checked plain values.

Guarantee: a `Plane` has finite positions, unit and perpendicular directions, a positive spacing and a usable rescale;
what the header lacks or states absurdly is a `ValueError` with a reason that quotes nothing but numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.io.dicom_file import PixelPlace, open_header
from medvlp.io.dicom_scan import HEAD_BYTES, Wanted, scan
from medvlp.io.limits import SPACING_MM, check_frame

PIXEL_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)
GEOMETRY_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")
VALUE_TAGS = ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence")
STUDY_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "ImageType"),
    *("SeriesDescription", "StudyDate", "SeriesNumber", "AccessionNumber", "PatientSex", "PatientAge"),
    *("BodyPartExamined", "ViewPosition", "Manufacturer"),
)
HEADER_TAGS = (*STUDY_TAGS, *PIXEL_TAGS, *GEOMETRY_TAGS, *VALUE_TAGS)
_WANTED = Wanted.of(HEADER_TAGS)
_FARTHEST_MM = 1e5


@dataclass(frozen=True, slots=True)
class Plane:
    """Geometry and rescale of one slice: position of the first pixel's centre and directions in LPS, mm."""

    position: tuple[float, float, float]
    row: tuple[float, float, float]
    """Direction in which the column index grows."""
    column: tuple[float, float, float]
    """Direction in which the row index grows."""
    spacing_mm: tuple[float, float]
    """Between rows, between columns."""
    slope: float | None
    intercept: float | None
    rescale_type: str


@dataclass(frozen=True, slots=True)
class Pixels:
    """Image Pixel module of a file: enough to read native data without a decoder."""

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    padding: tuple[int, int] | None
    transfer_syntax: str
    place: PixelPlace

    @property
    def plain(self) -> bool:
        """Whether the words of native pixel data can be read without a decoder."""
        return self.allocated in (8, 16) and 1 <= self.stored <= self.high_bit + 1 <= self.allocated

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest stored value that the bits can hold."""
        half = 2 ** (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True, slots=True)
class Header:
    """One file: the values of `HEADER_TAGS` that it has, and where its pixels are."""

    path: Path
    values: Mapping[str, Any]
    transfer_syntax: str
    place: PixelPlace | None

    def text(self, keyword: str) -> str:
        """Return a value as text, empty where it is absent."""
        value = self.values.get(keyword)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = "\\".join(str(part) for part in value)
        return "" if value is None else str(value).strip("\0 ")

    @property
    def image_type(self) -> list[str]:
        """Values of Image Type in capitals."""
        value = self.values.get("ImageType")
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return [str(part).strip().upper() for part in values]


def read_header(path: Path) -> Header:
    """Read the header of one file.

    Raises:
        OSError: It cannot be opened. Other errors: it is broken.
    """
    with path.open("rb", buffering=0) as file:
        found = scan(file.read(HEAD_BYTES), _WANTED)
    if found is not None:
        place = PixelPlace(found.offset, found.length, in_file=True)
        return Header(path, found.values, found.transfer_syntax, place)
    dataset, place_or_none = open_header(path, HEADER_TAGS)
    values = {keyword: dataset.get(keyword) for keyword in HEADER_TAGS if dataset.get(keyword) is not None}
    return Header(path, values, str(dataset.file_meta.TransferSyntaxUID), place_or_none)


def pixels_of(header: Header) -> Pixels:
    """Return the checked Image Pixel module.

    Raises:
        ValueError: It is missing, contradicts itself, is coloured, or has an absurd size.
    """
    ds = header.values
    if header.place is None:
        raise ValueError("it has no pixel data, or ends before them")
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
    missing = [name for name in needed if ds.get(name) in (None, "")]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    photometric = header.text("PhotometricInterpretation")
    if int(ds.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError("it is coloured or of an unknown photometric interpretation")
    rows, columns, stored = int(ds["Rows"]), int(ds["Columns"]), int(ds["BitsStored"])
    check_frame(rows, columns)
    high_bit = ds.get("HighBit")
    signed = bool(int(ds["PixelRepresentation"]))
    return Pixels(
        rows,
        columns,
        int(ds.get("NumberOfFrames") or 1),
        int(ds["BitsAllocated"]),
        stored,
        stored - 1 if high_bit in (None, "") else int(high_bit),
        signed,
        photometric,
        _padding(ds, signed),
        header.transfer_syntax,
        header.place,
    )


def _padding(ds: Mapping[str, Any], signed: bool) -> tuple[int, int] | None:
    """Return lowest and highest stored value of padding pixels (PS3.3 C.7.5.1.1.2)."""
    ends = [ds.get("PixelPaddingValue"), ds.get("PixelPaddingRangeLimit")]
    if ends[0] in (None, ""):
        return None
    # The VR of these two is often written without regard to the sign of the pixels.
    wrapped = [int(end) & 0xFFFF for end in ends if end not in (None, "")]
    values = [word - 65536 if signed and word > 32767 else word for word in wrapped]
    return min(values), max(values)


def plane_of(get: Any) -> Plane:
    """Return the checked geometry and rescale of one slice.

    Args:
        get: Attribute by keyword, or None: of the dataset, or of a frame's functional groups.

    Raises:
        ValueError: Something is missing or absurd; the message says what.
    """
    position = _numbers(get("ImagePositionPatient"), 3, "ImagePositionPatient")
    cosines = _numbers(get("ImageOrientationPatient"), 6, "ImageOrientationPatient")
    spacing = _numbers(get("PixelSpacing"), 2, "PixelSpacing")
    if np.abs(position).max() > _FARTHEST_MM:
        raise ValueError(f"its position is {np.abs(position).max():.4g} mm from the origin")
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(row @ column) > 1e-2:
        raise ValueError("its image orientation is no pair of perpendicular unit vectors")
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        raise ValueError(f"its pixel spacing is {spacing[0]:.4g} x {spacing[1]:.4g} mm")
    slope, intercept = _rescale(get("RescaleSlope")), _rescale(get("RescaleIntercept"))
    if (slope is None) != (intercept is None):
        raise ValueError("rescale slope and intercept must come together")
    if slope is not None and (slope == 0 or abs(slope) > 1e6):
        raise ValueError(f"its rescale slope is {slope:.6g}")
    if intercept is not None and abs(intercept) > 1e6:
        raise ValueError(f"its rescale intercept is {intercept:.6g}")
    row, column = row / lengths[0], column / lengths[1]
    return Plane(
        (float(position[0]), float(position[1]), float(position[2])),
        (float(row[0]), float(row[1]), float(row[2])),
        (float(column[0]), float(column[1]), float(column[2])),
        (float(spacing[0]), float(spacing[1])),
        slope,
        intercept,
        str(get("RescaleType") or "").strip("\0 "),
    )


def _numbers(value: Any, count: int, keyword: str) -> np.ndarray:
    if value is None or value == "":
        raise ValueError(f"it lacks {keyword}")
    values = [value] if isinstance(value, str) else value  # a text of one value is no sequence of its characters
    try:
        numbers = np.asarray([float(part) for part in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"its {keyword} is not numbers") from None
    if len(numbers) != count:
        raise ValueError(f"its {keyword} has {len(numbers)} values where {count} are needed")
    if not np.isfinite(numbers).all():
        raise ValueError(f"its {keyword} is not finite")
    return numbers


def _rescale(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("its rescale slope or intercept is no number") from None
    if not np.isfinite(number):
        raise ValueError("its rescale slope or intercept is not finite")
    return number
