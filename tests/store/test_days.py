"""Dates become days since the patient's first study, and leave no trace."""

from __future__ import annotations

import pytest

from medvlp.store.days import study_days, unreadable_dates
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study


def study(name: str, patient: str, date: str | None) -> Study:
    return Study(name, patient, (ImageRef(name, f"{name}.png"),), date=date)


def test_days_count_from_the_first_dated_study_of_the_patient() -> None:
    studies = [
        study("a", "p", "20200301"),
        study("b", "p", "20200228"),  # 2020 has a 29 February
        study("c", "p", None),
        study("d", "q", "19991231"),
        study("e", "q", "20000101"),
        study("f", UNKNOWN_PATIENT, "20000101"),
        study("g", UNKNOWN_PATIENT, "20000103"),
    ]
    assert study_days(studies) == {"a": 2, "b": 0, "d": 0, "e": 1}
    assert unreadable_dates(studies) == []


@pytest.mark.parametrize("date", ["2020-03-01", "20200230", "2020", "", "２０２００３０１", "20201301", "00000101"])
def test_what_is_no_date_gives_no_day_and_is_not_repeated(date: str) -> None:
    studies = [study("a", "p", date), study("b", "p", "20200301")]
    assert study_days(studies) == {"b": 0}
    (problem,) = unreadable_dates(studies)
    assert problem.study_id == "a"
    if date:
        assert date not in problem.reason + problem.fix
