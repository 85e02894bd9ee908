"""Dates of studies as days since the patient's first study: the one form in which a store keeps them.

Guarantee: no date leaves this module, only differences. A date that cannot be read, or whose patient is unknown, gives
no day; the first is also recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from medvlp.sources.base import Problem
from medvlp.types import UNKNOWN_PATIENT, Study


def study_days(studies: Sequence[Study]) -> dict[str, int]:
    """Return study id -> days since the first dated study of the same patient among `studies`."""
    dates = {study.study_id: found for study in studies if (found := _parsed(study)) is not None}
    first: dict[str, date] = {}
    for study in studies:
        if study.study_id in dates:
            first[study.patient_id] = min(dates[study.study_id], first.get(study.patient_id, date.max))
    return {
        study.study_id: (dates[study.study_id] - first[study.patient_id]).days
        for study in studies
        if study.study_id in dates
    }


def unreadable_dates(studies: Sequence[Study]) -> list[Problem]:
    """Return a problem for each study whose date is none; it does not repeat what stands there."""
    return [
        Problem(
            study.images[0].path if study.images else study.study_id,
            "The study date is no date of the form YYYYMMDD; the study has no day.",
            "Correct the date, or take it out.",
            study.study_id,
        )
        for study in studies
        if study.date is not None and study.patient_id != UNKNOWN_PATIENT and _parsed(study) is None
    ]


def _parsed(study: Study) -> date | None:
    text = study.date
    if text is None or study.patient_id == UNKNOWN_PATIENT or len(text) != 8 or not (text.isascii() and text.isdigit()):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
