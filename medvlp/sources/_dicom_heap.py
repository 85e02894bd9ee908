"""A heap of DICOM files -> images and volumes with the ids that a table may name them by; headers only.

Guarantee: items come in the order of study, series and file; every file that is no item is a recorded problem, or
counted where nothing is wrong with it (localisers, masks, documents, copies, other modalities).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp.errors import UserError
from medvlp.sources._dicom_segments import Segment, segments_of, with_masks
from medvlp.sources._heap_item import Item
from medvlp.sources._tables import view_of
from medvlp.sources._values import age_years, sex, yyyymmdd
from medvlp.sources.base import Source
from medvlp.types import AS_A_WHOLE, UNKNOWN_PATIENT, ImageRef

if TYPE_CHECKING:
    from medvlp.io.dicom_header import Header
    from medvlp.io.series import Part

RADIOGRAPHS = ("CR", "DX", "MG", "RG", "RF", "PX", "IO", "XA")
VOLUMES = ("CT", "MR", "PT")
NAME_TAGS = (
    *("PatientName", "OtherPatientNames", "OtherPatientIDs", "PatientMotherBirthName", "PatientBirthName"),
    *("ResponsiblePerson", "ReferringPhysicianName", "RequestingPhysician", "PerformingPhysicianName"),
    *("NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "ConsultingPhysicianName", "OperatorsName"),
)

PLACE_TAGS = ("InstitutionName", "InstitutionAddress")


def read_heap(source: Source, modality: str) -> tuple[list[Item], str]:
    """Return the items of one kind, and which kind it is: CR for all radiographs, or CT, MR, PT.

    Args:
        source: The data set; it records what is left out.
        modality: The kind, or auto where there is one only.

    Raises:
        UserError: There is no DICOM image, none of that kind, or several kinds and `modality` is auto.
    """
    from medvlp.io.series import files_under, find_parts

    everything = files_under(source.root)
    parts, problems = find_parts(everything)
    known = sum(len(part.headers) for part in parts) + sum(len(problem.files) for problem in problems)
    if len(everything) > known:
        source.counts["files that are no DICOM, passed over"] = len(everything) - known
    segments: list[Segment] = []
    for problem in problems:
        if not problem.broken:
            found = [segment for file in problem.files for segment in segments_of(source.root, file)]
            segments += found
            if not found:
                source.counts[f"{problem.reason.rstrip('.')}: files left out"] += len(problem.files)
            continue
        for file in problem.files:
            source.problem(file.relative_to(source.root).as_posix(), problem.reason, problem.fix)
    kinds = Counter(_kind(part) for part in parts)
    chosen = _choose({kind: count for kind, count in kinds.items() if kind in ("CR", *VOLUMES)}, modality, source.root)
    for kind, count in sorted(kinds.items()):
        if kind != chosen:
            source.counts[f"series of another kind ({kind}), left out"] = count
    items: list[Item] = []
    for part, number in _numbered([part for part in parts if _kind(part) == chosen]):
        files = [[header] for header in part.headers] if chosen == "CR" else [part.headers]
        items += [_item(source.root, headers, part, number) for headers in files]
    items = _sound(source, sorted(items, key=lambda item: (item.study, item.image.image_id, item.image.path)))
    return with_masks(source, items, segments) if chosen in VOLUMES else items, chosen


def names_of(file: Path) -> tuple[str, ...]:
    """Return the names of people in a header, patient and staff, for their removal from the report.

    Name and address of the institution are among them, to be found as a whole only.
    """
    from pydicom.valuerep import PersonName

    from medvlp.io.dicom_file import open_header

    dataset, _ = open_header(file, (*NAME_TAGS, *PLACE_TAGS))
    values = [dataset.get(tag) for tag in NAME_TAGS]
    parts = [[value] if isinstance(value, str | PersonName) else list(value) for value in values if value]
    places = {f"{AS_A_WHOLE}{dataset.get(tag)}" for tag in PLACE_TAGS if dataset.get(tag)}
    return tuple(sorted({str(value) for part in parts for value in part} | places))


def _kind(part: Part) -> str:
    modality = part.headers[0].text("Modality") or "none"
    if part.kind == "volume":
        return modality
    return "CR" if modality in RADIOGRAPHS else f"images of {modality}"


def _choose(kinds: dict[str, int], modality: str, root: Path) -> str:
    found = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())) or "none"
    if modality == "auto" and len(kinds) == 1:
        return next(iter(kinds))
    if modality in kinds:
        return modality
    if not kinds:
        fix = "Check the root; series of single slices and files without image are no use."
        raise UserError("The folder holds no DICOM radiograph or volume.", root, fix)
    what = f"The folder holds series of several kinds ({found})." if modality == "auto" else f"No {modality}: {found}."
    raise UserError(what, root, f"Set options.modality to {' or '.join(sorted(kinds))}; one store holds one kind.")


def _numbered(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Number the parts of each series from 0, in the order of their first files."""
    seen: Counter[str] = Counter()
    numbered = []
    for part in sorted(parts, key=lambda part: min(header.path for header in part.headers)):
        uid = part.headers[0].text("SeriesInstanceUID")
        numbered.append((part, seen[uid]))
        seen[uid] += 1
    return numbered


def _item(root: Path, headers: list[Header], part: Part, number: int) -> Item:
    first, volume = headers[0], part.kind == "volume"
    series, sop = first.text("SeriesInstanceUID"), first.text("SOPInstanceUID")
    paths = [header.path.relative_to(root).as_posix() for header in headers]
    image_id = f"{series}{f'-{number + 1}' if number else ''}" if volume else sop
    view = None if volume else view_of(first.text("ViewPosition"))
    image = ImageRef(image_id, paths[0], first.text("Modality"), view, tuple(paths) if len(paths) > 1 else ())
    named = {name for path in paths for name in (path, Path(path).name, Path(path).stem)}
    sops = {header.text("SOPInstanceUID") for header in headers}
    patient = first.text("PatientID")
    keys = {
        "file": tuple(sorted(named)),
        "SOP instance": tuple(sorted(sops - {""})),
        "series": (series,),
        "study": (first.text("StudyInstanceUID"),),
        "accession": (first.text("AccessionNumber"),),
        "patient": (patient,),
    }
    facts = {"manufacturer": first.text("Manufacturer"), "body_part": first.text("BodyPartExamined")}
    return Item(
        image,
        first.text("StudyInstanceUID"),
        patient or UNKNOWN_PATIENT,
        keys,
        {name: value for name, value in facts.items() if value},
        age_years(first.text("PatientAge")),
        sex(first.text("PatientSex")),
        yyyymmdd(first.text("StudyDate")),
    )


def _sound(source: Source, items: list[Item]) -> list[Item]:
    """Leave out items without ids, with an id that another file has, and studies of two patients."""
    images = Counter(item.image.image_id for item in items)
    patients: dict[str, set[str]] = {}
    for item in items:
        patients.setdefault(item.study, set()).add(item.patient)
    kept = []
    for item in items:
        if not item.study or not item.image.image_id:
            mistake = "The header lacks StudyInstanceUID or SOPInstanceUID", "Export the file again."
        elif images[item.image.image_id] > 1:
            mistake = "Several files that differ have one SOPInstanceUID; none is kept", "Keep the right one."
        elif len(patients[item.study]) > 1:
            mistake = "The files of the examination name several patients", "Correct PatientID; none of them is kept."
        else:
            kept.append(item)
            continue
        source.problem(item.image.path, mistake[0], mistake[1], item.study or None)
    return kept
