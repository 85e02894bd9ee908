"""A heap of DICOM files -> series, each of which can be one volume; headers only.

Guarantee: every file is in exactly one series or in exactly one problem, with the reason. A series has one
SeriesInstanceUID, patient, orientation, pixel spacing, size and frame of reference; localisers, masks, reports and
slices without a position are problems. Order and names of files play no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.dicom_header import Header, Pixels, Plane, pixels_of, plane_of, read_header
from medvlp.io.dicom_pixels import quiet_pydicom
from medvlp.io.stack import SAME_DIRECTION, SAME_SPACING

SLICE_MODALITIES = frozenset({"CT", "MR", "PT"})
"""Modalities whose single-frame files are slices of a volume; files of all others are images of their own."""
_LOCALISERS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
_POSITION = "ImagePositionPatient"
_CAPTURES = frozenset({"1.2.840.10008.5.1.4.1.1.7", *(f"1.2.840.10008.5.1.4.1.1.7.{kind}" for kind in range(1, 5))})
"""Secondary Capture classes: dose sheets and rendered views that scanners send as images of their own modality."""
_MASKS = frozenset({"SEG", "RTSTRUCT"})
_DOCUMENTS = frozenset({"SR", "PR", "KO", "DOC", "REG", "RTPLAN"})
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_FIX = "Restore the file from its source, or leave it out."


@dataclass(frozen=True, slots=True)
class Series:
    """Files that belong together, and what their headers say of patient and examination (as they say it)."""

    series_uid: str
    study_uid: str
    patient_id: str
    modality: str
    description: str
    date: str | None
    """YYYYMMDD."""
    files: tuple[Path, ...]
    """In the order of their positions where they are slices, else sorted by name."""
    n: int
    """Slices or frames."""
    kind: str
    """volume: slices, or one file of several frames with positions; image: each file is an image of its own."""
    part: int = 0
    """Number of this part, where files of one SeriesInstanceUID do not fit together and were parted."""
    rows: int = 0
    columns: int = 0
    accession_number: str | None = None
    sex: str | None = None
    """M, F or None."""
    age: float | None = None
    """Years."""
    body_part: str | None = None
    view: str | None = None
    manufacturer: str | None = None


@dataclass(frozen=True, slots=True)
class SeriesProblem:
    """Files that are in no series: why, and the next step."""

    files: tuple[Path, ...]
    reason: str
    fix: str
    broken: bool = True
    """False for a file that is whole but no part of a volume: a localiser, mask, document or copy."""
    series_uid: str = ""


class SeriesList(list[Series]):
    """The series found, with the `problems` of what is not in them."""

    def __init__(self, series: Iterable[Series] = (), problems: Iterable[SeriesProblem] = ()) -> None:
        super().__init__(series)
        self.problems: list[SeriesProblem] = list(problems)


@dataclass(frozen=True, slots=True)
class Slice:
    """One file as a slice: header, pixel module and geometry."""

    header: Header
    pixels: Pixels
    plane: Plane


@dataclass
class _Group:
    """Files of one series that fit together."""

    slices: list[Slice] = field(default_factory=list)

    def fits(self, new: Slice) -> bool:
        first = self.slices[0]
        a, b = first.plane, new.plane
        return (
            (first.pixels.rows, first.pixels.columns) == (new.pixels.rows, new.pixels.columns)
            and first.header.text("FrameOfReferenceUID") == new.header.text("FrameOfReferenceUID")
            and np.abs(np.subtract(a.row + a.column, b.row + b.column)).max() <= SAME_DIRECTION
            and np.abs(np.divide(a.spacing_mm, b.spacing_mm) - 1).max() <= SAME_SPACING
        )


@dataclass(frozen=True)
class Part:
    """Files that make one volume (`slices`, or one file of several `frames`), or `images` of their own."""

    kind: str
    headers: list[Header]
    slices: list[Slice] = field(default_factory=list)


def find_series(folder: str | Path) -> SeriesList:
    """Read the headers of all DICOM files under a folder, at any depth, and group them.

    Args:
        folder: Any mixture of studies and series; other files are left out without a word.

    Returns:
        The series, sorted by study, series and part; `.problems` says what became of the other files.

    Raises:
        UserError: The folder does not exist.
    """
    parts, problems = find_parts(files_under(folder))
    numbers: dict[str, int] = {}
    series = []
    for part in parts:
        uid = part.headers[0].text("SeriesInstanceUID")
        series.append(_series(part, numbers.setdefault(uid, 0)))
        numbers[uid] += 1
    return SeriesList(sorted(series, key=lambda s: (s.study_uid, s.series_uid, s.part)), problems)


def files_under(folder: str | Path) -> list[Path]:
    """Return all files under a folder, at any depth, sorted; hidden ones are left out.

    Raises:
        UserError: The folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("The folder does not exist.", folder, "Check the path.")
    return sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())


def find_parts(files: Sequence[Path]) -> tuple[list[Part], list[SeriesProblem]]:
    """Group those of the files that are DICOM; each is in one part or in one problem."""
    from medvlp.io import is_dicom_file

    problems: list[SeriesProblem] = []
    by_uid: dict[str, list[Header]] = {}
    dicom = [path for path in files if is_dicom_file(path)]
    for path in unrecognised(files, dicom):
        problems.append(SeriesProblem((path,), "The file is named like the DICOM files beside it, but is none.", _FIX))
    with quiet_pydicom():
        for path in dicom:
            try:
                header = read_header(path)
                if not header.text("SeriesInstanceUID"):
                    raise ValueError("it lacks SeriesInstanceUID")
            except Exception as error:  # whatever a parser throws at a broken file
                reason = f"The DICOM header cannot be used: {one_line(error)}."
                problems.append(SeriesProblem((path,), reason, _FIX))
                continue
            by_uid.setdefault(header.text("SeriesInstanceUID"), []).append(header)
        return [part for headers in by_uid.values() for part in _parts_of(headers, problems)], problems


def unrecognised(files: Sequence[Path], recognised: Sequence[Path]) -> list[Path]:
    """Return files named like those of a format (by suffix), or empty, that are none: they may be lost slices."""
    known = set(recognised)
    suffixes = {path.suffix.lower() for path in recognised}
    others = [path for path in files if path not in known and path.suffix.lower() in suffixes]
    return [path for path in others if (path.suffix or not path.stat().st_size) and path.name.upper() != "DICOMDIR"]


def _parts_of(headers: list[Header], problems: list[SeriesProblem]) -> list[Part]:
    """Part the files of one SeriesInstanceUID; what belongs to no part goes to `problems`."""
    headers = _without_copies(headers, problems)
    images: list[Header] = []
    groups: list[_Group] = []
    frames: list[Header] = []
    for header in headers:
        fault = _no_image(header)
        if fault:
            _report(problems, header, *fault)
        elif _has_frames(header):
            frames.append(header)
        elif header.text("Modality") not in SLICE_MODALITIES:
            images.append(header)
        else:
            try:
                new = Slice(header, pixels_of(header), plane_of(header.values.get))
            except Exception as error:  # whatever a parser throws at a broken value
                _report(problems, header, f"The slice has no place in a volume: {one_line(error)}.", _FIX)
                continue
            group = next((group for group in groups if group.fits(new)), None)
            if group is None:
                groups.append(group := _Group())
            group.slices.append(new)
    parts = []
    for group in _of_one_patient(groups, problems):
        if len(group.slices) == 1:
            reason = "One slice alone is no volume, and no other file of its series has its orientation and size."
            fix = "Restore the rest of the series, or leave the file out."
            _report(problems, group.slices[0].header, reason, fix, broken=False)
        else:
            slices = _sorted_slices(group)
            parts.append(Part("volume", [one.header for one in slices], slices))
    parts += [Part("volume", [header]) for header in frames]
    if images:
        parts.append(Part("image", sorted(images, key=lambda header: header.path)))
    return parts


def _of_one_patient(groups: list[_Group], problems: list[SeriesProblem]) -> list[_Group]:
    """Return the groups of a series, or none and a problem where its slices name several patients."""
    slices = [one.header for group in groups for one in group.slices]
    patients = {header.text("PatientID") for header in slices} - {""}
    if len(patients) <= 1:
        return groups
    reason = f"The slices of one series are of {len(patients)} patients, as their headers say."
    fix = "Restore the series from its source: nothing says whose the volume is."
    files = tuple(header.path for header in slices)
    problems.append(SeriesProblem(files, reason, fix, series_uid=slices[0].text("SeriesInstanceUID")))
    return []


def _report(problems: list[SeriesProblem], header: Header, reason: str, fix: str, broken: bool = True) -> None:
    problems.append(SeriesProblem((header.path,), reason, fix, broken, header.text("SeriesInstanceUID")))


def _without_copies(headers: list[Header], problems: list[SeriesProblem]) -> list[Header]:
    """Leave out files that are byte for byte another file of the series."""
    first: dict[str, Header] = {}
    kept = []
    for header in headers:
        uid = header.text("SOPInstanceUID")
        other = first.setdefault(uid, header) if uid else header
        if other is not header and other.path.read_bytes() == header.path.read_bytes():
            reason = "The file is a copy of another one of its series."
            _report(problems, header, reason, "Delete one of them.", broken=False)
            continue
        kept.append(header)
    return kept


def _no_image(header: Header) -> tuple[str, str, bool] | None:
    """Return reason, next step and whether it is broken, for a file that is no image of a patient."""
    modality = header.text("Modality")
    if modality in _MASKS:
        return f"The file is a mask ({modality}), not an image.", "Name it as the mask of its series.", False
    if modality in _DOCUMENTS:
        return f"The file is a document ({modality}), not an image.", "Leave it out.", False
    if header.place is None:
        return "The file has no pixel data, or ends before them.", _FIX, True
    if modality in SLICE_MODALITIES and header.text("SOPClassUID") in _CAPTURES and not header.text(_POSITION):
        return f"The file is a capture of a screen or page ({modality}), not a slice.", "Leave it out.", False
    if _LOCALISERS & set(header.image_type):
        return "The file is a localiser.", "Leave it out: a localiser is no part of a volume.", False
    return None


def _has_frames(header: Header) -> bool:
    try:
        return int(header.values.get("NumberOfFrames") or 1) > 1 and header.text("Modality") in SLICE_MODALITIES
    except (TypeError, ValueError):
        return False


def _sorted_slices(group: _Group) -> list[Slice]:
    plane = group.slices[0].plane
    normal = np.cross(plane.row, plane.column)
    return sorted(group.slices, key=lambda s: (float(np.dot(s.plane.position, normal)), s.header.path))


def _series(part: Part, number: int) -> Series:
    first = part.headers[0]
    frames = first.text("NumberOfFrames")
    date = re.sub(r"[^0-9]", "", first.text("StudyDate"))
    return Series(
        series_uid=first.text("SeriesInstanceUID"),
        study_uid=first.text("StudyInstanceUID"),
        patient_id=first.text("PatientID"),
        modality=first.text("Modality"),
        description=first.text("SeriesDescription"),
        date=date if len(date) == 8 else None,
        files=tuple(header.path for header in part.headers),
        n=_whole(frames) if part.kind == "volume" and not part.slices else len(part.headers),
        kind=part.kind,
        part=number,
        rows=_whole(first.text("Rows")),
        columns=_whole(first.text("Columns")),
        accession_number=first.text("AccessionNumber") or None,
        sex=first.text("PatientSex") if first.text("PatientSex") in ("M", "F") else None,
        age=_years(first.text("PatientAge")),
        body_part=first.text("BodyPartExamined") or None,
        view=first.text("ViewPosition") or None,
        manufacturer=first.text("Manufacturer") or None,
    )


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _years(text: str) -> float | None:
    found = re.fullmatch(r"(\d{1,3})([YMWD])", text)
    return None if found is None else int(found[1]) * _AGE_UNITS[found[2]]
