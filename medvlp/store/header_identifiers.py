"""Identifiers in the headers of raw DICOM files, which a store never holds but a hospital hands on with its files.

Guarantee: neither values nor file names are reported, only which attributes are filled in how many files. The
attributes are those that the Basic Application Level Confidentiality Profile (DICOM PS3.15, table E.1-1) removes,
empties or replaces because they name or number a person; dates, free text and private attributes are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from medvlp.progress import progress_bar

PERSONAL = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientBirthTime", "OtherPatientIDs", "OtherPatientNames"),
    *("OtherPatientIDsSequence", "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientComments"),
    *("PatientTelephoneNumbers", "MilitaryRank", "EthnicGroup", "Occupation", "AdditionalPatientHistory"),
    *("ResponsiblePerson", "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber"),
    *("ReferringPhysicianName", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers"),
    *("PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "OperatorsName", "RequestingPhysician"),
    *("PhysiciansOfRecord", "ScheduledPerformingPhysicianName", "ImageComments", "RequestAttributesSequence"),
)
FREE = (
    *("StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription"),
    *("PerformedProcedureStepDescription", "ReasonForTheRequestedProcedure", "StudyComments", "VisitComments"),
)
"""Free text, in which names are often typed."""
PRIVATE = "private attributes"
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime")
_MADE_UP = re.compile(r"(?:anon\w*|none|unknown|na|n/a|x+|0+|\[?removed\]?|de-?identified)", re.IGNORECASE)


def header_identifiers(root: Path) -> list[dict[str, Any]]:
    """Return, for the DICOM files below a folder, the attributes that are filled and in how many files.

    Args:
        root: Raw data set.

    Returns:
        Rows with `attribute`, `kind` (person, free or date), `files` and `values` (how many different ones).

    Raises:
        UserError: The folder does not exist.
    """
    from medvlp.io import find_images

    wanted = [*PERSONAL, *FREE, PRIVATE, *DATES]
    files: Counter[str] = Counter()
    values: dict[str, set[str]] = defaultdict(set)
    found = find_images(root)
    with progress_bar("Reading headers", len(found), "files") as advance:
        for file in found:
            for attribute, value in _filled(file, wanted).items():
                files[attribute] += 1
                values[attribute].add(value)
            advance()
    return [
        {
            "attribute": attribute,
            "kind": "date" if attribute in DATES else "person" if attribute in PERSONAL else "free",
            "files": files[attribute],
            "values": len(values[attribute]),
        }
        for attribute in wanted
        if attribute in files
    ]


def _filled(file: Path, wanted: list[str]) -> dict[str, str]:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from medvlp.io.dicom_pixels import quiet_pydicom

    try:
        with quiet_pydicom():
            data = dcmread(file, stop_before_pixels=True)
            texts = {name: str(data.get(name, "")).strip() for name in wanted if name != PRIVATE}
            tags = tuple(data.keys())
            texts[PRIVATE] = " ".join(str(tag) for tag in tags if tag.is_private and not tag.is_private_creator)
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, TypeError, NotImplementedError):
        return {}
    return {name: text for name, text in texts.items() if text and not _MADE_UP.fullmatch(text)}
