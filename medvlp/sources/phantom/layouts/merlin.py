"""The raw layout of Merlin; see `data_cards/merlin.md`."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Study, VolumeFacts

_INNER = "merlinabdominalctdataset"


class MerlinLayout(Layout):
    """Volumes in `merlin_data/`, the workbook of reports and the CSV of findings, with -1 for what nobody mentions."""

    needs = "volumes"
    label_values = (1.0, 0.0, math.nan)

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their ids."""
        reports: list[list[Any]] = []
        findings: list[list[Any]] = []
        studies = []
        for example in examples:
            assert example.volume is not None
            name = f"AC{hashlib.sha256(str(example.number).encode()).hexdigest()[:7]}"
            labels = self._values(example)
            seen, opinion = example.sections.get("findings", ""), example.sections.get("impression", "")
            reports.append(
                [name, f"{seen} IMPRESSION: {opinion}" if opinion else seen, example.split, example.number % 2]
            )
            findings.append([name, *(-1 if math.isnan(value) else int(value) for value in labels.values())])
            path = f"{_INNER}/merlin_data/{name}.nii.gz"
            self.put_nifti(path, example.volume.array, example.volume.affine)
            lines = [f"{heading}: {text}" for heading, text in (("FINDINGS", seen), ("IMPRESSION", opinion)) if text]
            studies.append(
                Study(
                    study_id=name,
                    patient_id=UNKNOWN_PATIENT,
                    images=(ImageRef(name, path, "CT", facts=VolumeFacts(Intensity.HU)),),
                    report="\n".join(lines) or None,
                    labels=labels,
                    attributes={"few_shot": str(example.number % 2)},
                    language="en" if lines else None,
                    split=example.split,
                )
            )
        self._workbook(f"{_INNER}/reports_final.xlsx", ("study id", "Findings", "Split", "Few Shot"), reports)
        self.put_csv(f"{_INNER}/zero_shot_findings_disease_cls.csv", ("study id", *self.card.labels), findings)
        return sorted(studies, key=lambda study: study.study_id)

    def _values(self, example: Example) -> dict[str, float]:
        """Return the example's labels; NaN for a finding that the phantom cannot show."""
        labels = self.labels(example)
        shown = self.card.labels if example.labels is not None else tuple(self.card.phantom)
        return {label: labels[label] if label in shown else math.nan for label in self.card.labels}

    def _workbook(self, path: str, header: Sequence[str], rows: list[list[Any]]) -> None:
        import openpyxl

        book = openpyxl.Workbook()
        book.properties.created = book.properties.modified = datetime(2020, 1, 1)
        sheet = book.active
        for row in (header, *rows):
            sheet.append(list(row))
        buffer = io.BytesIO()
        book.save(buffer)
        self.put_bytes(path, buffer.getvalue())
