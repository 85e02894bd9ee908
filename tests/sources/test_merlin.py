"""Merlin: -1 that is not mentioned, sections inside a cell, repeated ids, workbooks that cannot be read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources._csv import Row
from medvlp.sources._xlsx import read_xlsx
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.sources.merlin import sections_of
from medvlp.types import Study

LABELS = load_card("merlin").labels
HEADER = ["study id", "Findings", "Split", "Few Shot"]
ROWS: list[list[Any]] = [
    ["AC2", "Liver: normal. IMPRESSION: No change.", "train", None],
    ["AC1", "Spleen: large.", "test", 1.0],
]


def workbook(path: Path, rows: list[list[Any]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def write(
    root: Path, rows: list[list[Any]], findings: dict[str, dict[str, str]] | None = None, key: str = "study id"
) -> Path:
    (root / "merlin_data").mkdir()
    workbook(root / "reports_final.xlsx", [HEADER, *rows])
    for name in ("AC1", "AC2"):
        (root / "merlin_data" / f"{name}.nii.gz").touch()
    if findings is not None:
        lines = [",".join([name, *(own.get(label, "0") for label in LABELS)]) for name, own in findings.items()]
        (root / "zero_shot_findings_disease_cls.csv").write_text("\n".join([",".join([key, *LABELS]), *lines]))
    return root


def read(root: Path) -> tuple[list[Study], Source]:
    source = SOURCES.get("merlin")(root)
    return list(source.studies()), source


def test_minus_one_is_not_mentioned(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS, {"AC1": {"ascites": "1", "fracture": "-1"}, "ACX": {}})
    (one, two), source = read(root)
    assert (one.study_id, one.split, one.patient_id) == ("AC1", "test", "unknown")
    assert one.labels["ascites"] == 1
    assert one.labels["free_air"] == 0
    assert math.isnan(one.labels["fracture"])
    assert len(one.labels) == 30
    assert all(math.isnan(value) for value in two.labels.values())
    assert (one.attributes, two.attributes) == ({"few_shot": "1"}, {})
    assert two.report == "FINDINGS: Liver: normal.\nIMPRESSION: No change."
    facts = source.summary()
    assert facts["rows of findings without a report"] == facts["studies without a row of findings"] == 1
    assert not source.problems


@pytest.mark.parametrize(
    ("cell", "report"),
    [
        ("Liver normal.", "FINDINGS: Liver normal."),
        ("FINDINGS: Liver normal.\nIMPRESSION: Fine.", "FINDINGS: Liver normal.\nIMPRESSION: Fine."),
        ("IMPRESSION: Fine.", "IMPRESSION: Fine."),
        ("Clinical impression unclear.", "FINDINGS: Clinical impression unclear."),
        (" ", None),
    ],
)
def test_sections(cell: str, report: str | None) -> None:
    assert sections_of(cell) == report


@pytest.mark.parametrize(
    ("rows", "kept", "reason"),
    [
        ([*ROWS, ROWS[0]], 2, "agree; the first is kept"),
        ([*ROWS, ["AC2", "Other.", "train", None]], 1, "differ; none is kept"),
        ([*ROWS, ["AC3", "x", "train", None]], 2, "row without volume: AC3"),
        (ROWS[:1], 1, "the image is not in reports_final.xlsx"),
        ([ROWS[0], ["AC1", "x", "dev", None]], 1, "unknown split 'dev'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[list[Any]], kept: int, reason: str) -> None:
    studies, source = read(write(tmp_path, rows))
    assert len(studies) == kept
    assert any(reason in problem.reason for problem in source.problems)


def test_a_bad_finding_leaves_the_study_without_labels(tmp_path: Path) -> None:
    (one, _), source = read(write(tmp_path, ROWS, {"AC1": {"ascites": "2"}, "AC2": {}}, key="study_id"))
    assert all(math.isnan(value) for value in one.labels.values())
    assert [problem.study_id for problem in source.problems] == ["AC1"]


def test_what_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reports_final.xlsx is missing"):
        read(tmp_path)
    root = write(tmp_path, ROWS, {}, key="accession")
    with pytest.raises(UserError, match="no column of study ids"):
        read(root)
    workbook(root / "reports_final.xlsx", [["study id", "Finding", "Split"], ["AC1", "x", "train"]])
    with pytest.raises(UserError, match=r"no column 'Findings'. Did you mean 'Finding'"):
        read(root)


def test_both_suffixes_of_one_volume(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS)
    (root / "merlin_data/AC1.nii").touch()
    (one, _), source = read(root)
    assert one.images[0].path == "merlin_data/AC1.nii"
    assert source.problems[0].path == "merlin_data/AC1.nii.gz"


@pytest.mark.parametrize("content", [b"", b"no workbook", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "zip"])
def test_broken_workbooks(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.xlsx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="workbook cannot be read"):
        read_xlsx(path, ("a",))


def test_cells_of_a_workbook(tmp_path: Path) -> None:
    path = tmp_path / "cells.xlsx"
    workbook(path, [["a", " b ", "c"], [1.0, None, " x "], [None, None, None], [1.5, "t", None]])
    assert read_xlsx(path, ("b", "a"), ("z",)) == [
        Row(2, {"a": "1", "b": "", "z": ""}),
        Row(4, {"a": "1.5", "b": "t", "z": ""}),
    ]
    workbook(path, [["a"]])
    with pytest.raises(UserError, match="has no rows"):
        read_xlsx(path, ("a",))
