"""Merlin: abdominal CT volumes with reports in a workbook and thirty findings in a CSV.

Guarantee: a finding that the report does not mention (-1 in the table) is NaN, never uncertain and never absent.
Studies come in the order of their ids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from medvlp.errors import UserError
from medvlp.sources._checks import name_unlisted, unique_rows
from medvlp.sources._csv import Row, csv_columns, read_csv
from medvlp.sources._files import require_files
from medvlp.sources._report import join_sections
from medvlp.sources._values import label_value
from medvlp.sources._volumes import nifti_files
from medvlp.sources._xlsx import read_xlsx
from medvlp.sources.base import Source
from medvlp.types import NOT_MENTIONED, UNCERTAIN, UNKNOWN_PATIENT, ImageRef, Intensity, Study, VolumeFacts

REPORTS = "reports_final.xlsx"
FINDINGS = "zero_shot_findings_disease_cls.csv"
INNER = "merlinabdominalctdataset"
KEY = "study id"
KEYS = (KEY, "study_id", "Study ID", "id")
SPLITS = ("train", "val", "test")
_HEADINGS = re.compile(r"\A\s*FINDINGS\s*:|(?<![\w-])IMPRESSIONS?\s*:", re.IGNORECASE)


class Merlin(Source):
    """The data set below a root folder; see `data_cards/merlin.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per row of the reports, in the order of the ids.

        Raises:
            UserError: The reports or a column are missing, no volume is there, or a full edition has other counts than
                the card.
        """
        self.problems, self.counts = [], Counter()
        prefix = "" if (self.root / REPORTS).is_file() else f"{INNER}/"
        path = self.root / prefix / REPORTS
        if not path.is_file():
            raise UserError(f"{REPORTS} is missing.", self.root, f"Give the folder that holds it, or {INNER}/.")
        rows = read_xlsx(path, (KEY, "Findings", "Split"), ("Few Shot",))
        reports = unique_rows(self, rows, lambda row: row.cells[KEY], REPORTS, "study")
        self._count(rows)
        labels = self._labels(prefix, {row.cells[KEY] for row in rows})
        files = nifti_files(self, [f"{prefix}merlin_data/*"])
        require_files(self, files, "merlin_data/*.nii.gz")
        for name, row in sorted(reports.items()):
            mistake = None
            if name not in files:
                mistake = f"row without volume: {name} is not in merlin_data/"
            elif row.cells["Split"] not in SPLITS:
                mistake = f"unknown split '{row.cells['Split']}'"
            if mistake:
                self.problem(f"{REPORTS}:{row.line}", mistake, "Correct the row, or download the volume.", name)
            else:
                yield self._study(name, row, files[name], labels.get(name))
        name_unlisted(self, files, (row.cells[KEY] for row in rows), REPORTS)

    def _study(self, name: str, row: Row, path: str, labels: Mapping[str, float] | None) -> Study:
        report = sections_of(row.cells["Findings"])
        self.counts["studies without report"] += report is None
        self.counts["studies without a row of findings"] += labels is None
        few = row.cells["Few Shot"]
        return Study(
            study_id=name,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(name, path, "CT", facts=VolumeFacts(Intensity.HU)),),
            report=report,
            labels=labels or dict.fromkeys(self.card.labels, NOT_MENTIONED),
            attributes={"few_shot": few} if few else {},
            language=self.card.language if report else None,
            split=row.cells["Split"],
        )

    def _labels(self, prefix: str, known: set[str]) -> dict[str, dict[str, float]]:
        path = self.root / prefix / FINDINGS
        if not path.is_file():
            self.counts[f"{FINDINGS}: missing, no labels"] = 1
            return {}
        columns = csv_columns(path)
        key = next((name for name in KEYS if name in columns), None)
        if key is None:
            what = f"{FINDINGS} has no column of study ids ({', '.join(KEYS)})."
            raise UserError(what, path, f"Rename the column of the ids to '{KEY}'.")
        rows = unique_rows(
            self, read_csv(path, (key, *self.card.labels)), lambda row: row.cells[key], FINDINGS, "study"
        )
        found = {}
        for name, row in rows.items():
            if name not in known:
                self.counts["rows of findings without a report"] += 1
                continue
            try:
                found[name] = {label: _value(row.cells[label]) for label in self.card.labels}
            except ValueError as error:
                fix = "Correct the row; the study is kept without labels."
                self.problem(f"{FINDINGS}:{row.line}", str(error), fix, name)
        return found

    def _count(self, rows: list[Row]) -> None:
        splits = {row.cells[KEY]: row.cells["Split"] for row in rows}
        found = {"studies": len(splits)}
        found |= {f"{split} studies": sum(own == split for own in splits.values()) for split in SPLITS}
        self.check_counts(found, "studies")


def sections_of(cell: str) -> str | None:
    """Return the text of a cell as FINDINGS and, where it holds that heading, IMPRESSION."""
    parts = _HEADINGS.split(cell)
    starts = [match[0].strip().upper() for match in _HEADINGS.finditer(cell)]
    headings = ["FINDINGS", *("IMPRESSION" if start.startswith("IMP") else "FINDINGS" for start in starts)]
    return join_sections(zip(headings, parts, strict=True))


def _value(cell: str) -> float:
    value = label_value(cell)
    return NOT_MENTIONED if value == UNCERTAIN else value
