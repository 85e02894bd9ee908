"""INSPECT: joins by impression id, Censored that is not absent, ids that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import Study

MAPPING = "impression_id\tperson_id\timage_id\tprocedure_DATETIME\tnote_DATETIME"
LABELS = "impression_id\tpe_positive_nlp\tpe_acute\tpe_subsegmentalonly\t1_month_mortality\t12_month_PH\ttte_mortality"


def made() -> dict[str, list[str]]:
    return {
        "study_mapping": [
            MAPPING,
            "11\tp1\tPEa1.nii.gz\t2010-02-03 04:05:06\tx",
            "12\tp1\tPEa2\t\tx",
            "9\tp2\tPEb1\t2011-01-01\tx",
        ],
        "splits": ["impression_id\tsplit", "11\ttrain", "12\ttrain", "9\tvalid"],
        "impressions": [
            "impression_id\timpressions",
            '11\t"1. Acute PE.\n2. ""Saddle"" embolus."',
            "12\tNo PE.",
            "9\t",
        ],
        "labels": [
            LABELS,
            "11\tTrue\tTrue\tFalse\tCensored\tFalse\t10",
            "12\tFalse\tFalse\tFalse\tTRUE\t\t3",
            "9\t1\t0\tfalse\tFalse\tCensored\t4",
        ],
    }


def write(root: Path, tables: dict[str, list[str]], folder: str = "inspect-3/full") -> Path:
    (root / folder / "CTPA").mkdir(parents=True)
    for name, lines in tables.items():
        (root / folder / f"{name}_20250611.tsv").write_text("\n".join(lines) + "\n")
    for image in ("PEa1", "PEa2", "PEb1"):
        (root / folder / "CTPA" / f"{image}.nii.gz").touch()
    return root


def read(root: Path) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get("inspect")(root)
    return {study.study_id: study for study in source.studies()}, source


@pytest.mark.parametrize("folder", ["", "full", "inspect-3/full"])
def test_joins_and_values(tmp_path: Path, folder: str) -> None:
    studies, source = read(write(tmp_path, made(), folder or "."))
    assert list(studies) == ["11", "12", "9"]
    first, second, third = studies.values()
    assert first.images[0].path == f"{folder}/CTPA/PEa1.nii.gz".lstrip("/")
    assert first.report == 'IMPRESSION: 1. Acute PE.\n2. "Saddle" embolus.'
    assert (first.patient_id, first.date, first.split) == ("p1", "20100203", "train")
    assert (second.date, second.labels["1_month_mortality"]) == (None, 1)
    assert math.isnan(second.labels["12_month_PH"])
    assert (third.split, third.report, third.language) == ("val", None, None)
    assert math.isnan(first.labels["1_month_mortality"])
    assert math.isnan(first.labels["pe_positive"])
    assert [third.labels[name] for name in ("pe_positive_nlp", "pe_acute", "pe_subsegmentalonly")] == [1, 0, 0]
    facts = source.summary()
    assert facts["labels censored, not mentioned"] == 2
    assert facts["label pe_positive: no column, not mentioned"] == 1
    assert facts["studies without impression"] == facts["studies without a date"] == 1
    assert facts["edition"] == "subset: 3 of 23,248"
    assert not source.problems


def repeat(table: str, line: str) -> Callable[[dict[str, list[str]]], None]:
    return lambda tables: tables[table].append(line)


@pytest.mark.parametrize(
    ("change", "kept", "reason"),
    [
        (repeat("study_mapping", "13\tp3\tPEc1\t\tx"), 3, "row without CT: PEc1"),
        (repeat("study_mapping", "9\tp2\tPEb1\t2011-01-01\ty"), 3, "agree; the first is kept"),
        (repeat("study_mapping", "9\tp2\tPEb2\t2011-01-01\ty"), 2, "differ; none is kept"),
        (repeat("study_mapping", "14\tp2\tPEb1\t\tx"), 2, "the CT PEb1 belongs to 2 ids"),
        (repeat("splits", "9\ttest"), 2, "no (or no unambiguous) row in the splits"),
        (lambda tables: tables["labels"].pop(), 2, "row in the labels"),
        (lambda tables: tables["study_mapping"].pop(), 2, "the image is not in the study mapping"),
        (lambda tables: tables["splits"].__setitem__(3, "9\tdev"), 2, "unknown split 'dev'"),
        (lambda tables: tables["study_mapping"].__setitem__(3, "9\t\tPEb1\t\tx"), 2, "the row names no person"),
        (lambda tables: tables["labels"].__setitem__(3, "9\tmaybe\t0\t0\t0\t0\t0"), 2, "a label is 'maybe'"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, change: Callable[[dict[str, list[str]]], None], kept: int, reason: str
) -> None:
    tables = made()
    change(tables)
    studies, source = read(write(tmp_path, tables))
    assert len(studies) == kept
    assert any(reason in problem.reason for problem in source.problems)


def test_patients_in_two_splits_stop_the_run(tmp_path: Path) -> None:
    tables = made()
    tables["splits"][2] = "12\ttest"
    with pytest.raises(UserError, match="both test and train"):
        read(write(tmp_path, tables))


def test_two_releases_beside_each_other_stop_the_run(tmp_path: Path) -> None:
    root = write(tmp_path, made(), "full")
    (root / "full/labels_20240101.tsv").write_text(LABELS)
    with pytest.raises(UserError, match=r"2 tables labels"):
        read(root)
    (root / "full/labels_20240101.tsv").unlink()
    (root / "full/labels_20250611.tsv").write_text("impression_id\tother\n11\t1\n")
    with pytest.raises(UserError, match="has no label column"):
        read(root)
