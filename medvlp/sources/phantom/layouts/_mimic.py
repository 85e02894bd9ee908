"""What the raw layouts of MIMIC-CXR and MIMIC-CXR-JPG share; see their cards."""

from __future__ import annotations

import hashlib
import io
import zipfile
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN, ImageRef, Study

_METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)
_MEANINGS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}


@dataclass
class MimicTables:
    """Rows of all tables, and the reports by their names in the archive."""

    metadata: list[list[Any]] = field(default_factory=list)
    splits: list[list[Any]] = field(default_factory=list)
    labels: list[list[Any]] = field(default_factory=list)
    radiologist: list[list[Any]] = field(default_factory=list)
    sections: list[list[Any]] = field(default_factory=list)
    reports: dict[str, str] = field(default_factory=dict)
    records: list[list[Any]] = field(default_factory=list)
    listed: list[list[Any]] = field(default_factory=list)


class MimicLayout(Layout):
    """One of the two editions; `suffix` is that of its images."""

    label_values = (PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED)
    suffix: ClassVar[str]

    @abstractmethod
    def put_radiograph(self, path: str, image: ExampleImage, dicom_id: str) -> None:
        """Write one image."""

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by patient and study."""
        tables = MimicTables()
        studies = [self._study(example, tables) for example in examples]
        labeler = "chexpert" if self.options["labels"] == "none" else self.options["labels"]
        self.put_csv("mimic-cxr-2.0.0-metadata.csv.gz", _METADATA, tables.metadata)
        self.put_csv("mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), tables.splits)
        self.put_csv(f"mimic-cxr-2.0.0-{labeler}.csv.gz", ("subject_id", "study_id", *self.card.labels), tables.labels)
        if self._by_radiologist():
            spelling = {label: name for name, label in self.card.label_aliases.items()}
            header = ["study_id", *(spelling.get(label, label) for label in self.card.labels)]
            self.put_csv("mimic-cxr-2.1.0-test-set-labeled.csv", header, tables.radiologist)
        if self.options["reports"] == "sectioned":
            header = ["study", "impression", "findings", "last_paragraph", "comparison"]
            self.put_csv("mimic_cxr_sectioned.csv", header, tables.sections)
        else:
            self.put_bytes("mimic-cxr-reports.zip", _zip(tables.reports))
        if tables.listed:
            self.put_csv("mimic_5x200.csv", ["Path", "Report", *self._classes()], tables.listed)
        self.put_others(tables)
        return sorted(studies, key=lambda study: (study.patient_id, study.study_id))

    def put_others(self, tables: MimicTables) -> None:
        """Write what only this edition has."""

    def _by_radiologist(self) -> bool:
        return self.options["test_labels"] == "radiologist" and self.options["labels"] != "none"

    def _study(self, example: Example, tables: MimicTables) -> Study:
        subject, study_id = str(10_000_001 + example.patient), str(50_000_001 + example.number)
        split = {"val": "validate"}.get(example.split, example.split)
        date, seconds = f"2180{example.visit % 12 + 1:02d}{example.number % 28 + 1:02d}", "93014.531"
        images = []
        for place, image in enumerate(example.images):
            dicom_id = _dicom_id(example.number, place)
            path = f"files/p{subject[:2]}/p{subject}/s{study_id}/{dicom_id}{self.suffix}"
            self.put_radiograph(path, image, dicom_id)
            height, width = image.pixels.shape
            tables.metadata.append(
                [dicom_id, subject, study_id, "CHEST (PA AND LAT)", image.view, height, width, date, seconds,
                 "CHEST (PA AND LAT)", _MEANINGS[image.view], "Erect"]
            )  # fmt: skip
            tables.splits.append([dicom_id, study_id, subject, split])
            tables.records.append([subject, study_id, dicom_id, path])
            images.append(ImageRef(dicom_id, path, "CR", image.view))
        labels = self.labels(example)
        by_radiologist = self._by_radiologist() and example.split == "test"
        cells = [None if value != value else value for value in labels.values()]
        tables.labels.append([subject, study_id, *([None] * len(cells) if by_radiologist else cells)])
        if by_radiologist:
            tables.radiologist.append([study_id, *cells])
        present = [name for name in self._classes() if labels[name] == PRESENT]
        listed = {}
        if len(present) == 1:
            where = images[0].path.removeprefix("files/")
            tables.listed.append([where, example.caption, *(float(name in present) for name in self._classes())])
            listed = {"image_5x200": images[0].image_id, "class_5x200": present[0]}
        used = self.options["labels"] != "none"
        source = "radiologist" if by_radiologist else str(self.options["labels"])
        return Study(
            study_id=study_id,
            patient_id=subject,
            images=tuple(sorted(images, key=lambda image: image.image_id)),
            report=self._report(example, subject, study_id, tables),
            language="en" if self.options["reports"] != "none" else None,
            labels=labels if used else {},
            attributes={"label_source": source, "study_time": "093014"} | listed,
            subsets=("5x200",) if listed else (),
            date=date,
            split=None if self.options.get("split") == "none" else example.split,
        )

    def _classes(self) -> list[str]:
        """Return the classes of the list of BenchX, where this edition has it."""
        return list(self.card.adapter.get("lists", {}).get("5x200", {}).get("classes", ()))

    def _report(self, example: Example, subject: str, study_id: str, tables: MimicTables) -> str | None:
        sections = [(name.upper(), text) for name, text in example.sections.items()]
        whole = "\n \n ".join(f"{name}:  {text}" for name, text in sections)
        title = " " * 33 + "FINAL REPORT\n "
        tables.reports[f"files/p{subject[:2]}/p{subject}/s{study_id}.txt"] = f"{title}{whole}\n"
        cells = [example.sections.get(name, "") for name in ("impression", "findings", "last_paragraph", "comparison")]
        tables.sections.append([f"s{study_id}", *cells])
        if self.options["reports"] == "none":
            return None
        if self.options["reports"] == "sectioned":
            named = [("COMPARISON", cells[3]), ("FINDINGS", cells[1]), ("IMPRESSION", cells[0])]
            return "\n".join(f"{name}: {text}" for name, text in named if text)
        return whole


def _dicom_id(number: int, place: int) -> str:
    digits = hashlib.sha256(f"{number}/{place}".encode()).hexdigest()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def _zip(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), text)
    return buffer.getvalue()
