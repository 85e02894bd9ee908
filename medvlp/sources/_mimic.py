"""What MIMIC-CXR and MIMIC-CXR-JPG share: ids, paths, tables of views, splits and labels, and their join into studies.

Guarantee: a study has the images, split and labels that all tables agree on; what they do not agree on is a recorded
problem. Studies come in the order of patient and study id.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart, name_unlisted, refuse_no_match, unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._mimic_lists import Listed, read_lists
from medvlp.sources._mimic_reports import open_reports
from medvlp.sources._values import label_value, number, yyyymmdd
from medvlp.sources.base import Source
from medvlp.types import NOT_MENTIONED, ImageRef, Study

IDS = ("dicom_id", "subject_id", "study_id")
RADIOLOGIST, SPLIT = "mimic-cxr-2.1.0-test-set-labeled", "mimic-cxr-2.0.0-split"
FROM_JPG_EDITION = "mimic-cxr-2."
"""How the tables begin that only the JPG edition ships."""
_SUBJECT, _STUDY = re.compile(r"1\d{7}"), re.compile(r"5\d{7}")


class MimicSource(Source):
    """One of the two editions; `suffix` is that of its images."""

    suffix: ClassVar[str]
    place_of_tables: ClassVar[str]
    """What to do where a table of the JPG edition is missing."""

    @abstractmethod
    def records(self) -> tuple[str, list[Row]]:
        """Return the name and the rows of the table that lists every image, with `IDS` and perhaps `path`."""

    @abstractmethod
    def metadata(self) -> list[Row]:
        """Return `dicom_id`, `ViewPosition`, `StudyDate`, `StudyTime` per image; nothing where the table is missing."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per examination that has a usable image.

        Raises:
            UserError: A table is missing or lacks a column, no image is there, no study finds its labels or report,
                patients are in several official splits, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        table, rows = self.records()
        records = unique_rows(self, rows, lambda row: row.cells["dicom_id"], table)
        splits, labels = self._splits(), self._labels()
        found = {"images": len({row.cells["dicom_id"] for row in rows})}
        if splits is not None:
            sizes = Counter(row.cells["split"] for row in splits.values())
            found |= {f"{name} images": sizes[name] for name in self.card.adapter["splits"]}
        self.check_counts(found, "images")
        files = index_files(self, ["files/p*/p*/s*/*"], (self.suffix,))
        require_files(self, files, f"files/p*/p*/s*/*{self.suffix}")
        name_unlisted(self, files, (row.cells["dicom_id"] for row in rows), table)
        metadata = {row.cells["dicom_id"]: row.cells for row in self.metadata()}
        reports, lists = open_reports(self), read_lists(self)
        studies = []
        for study_id, own in self._grouped(records, splits, files, table):
            subject = own[0].cells["subject_id"]
            named = labels.get(study_id, ({}, "none"))
            facts = [metadata.get(row.cells["dicom_id"], {}) for row in own]
            date, time = min(map(_when, facts), default=(None, None), key=lambda when: (when[0] or "9", when[1] or "9"))
            text = reports.text(subject, study_id)
            self.counts["studies without a report"] += text is None and reports.kind != "none"
            self.counts["studies with a radiologist's labels"] += named[1] == "radiologist"
            self.counts["studies without a row of labels"] += bool(labels) and study_id not in labels
            listed = [
                (name, of[row.cells["dicom_id"]])
                for name, of in lists.items()
                for row in own
                if row.cells["dicom_id"] in of
            ]
            own_splits = {splits[row.cells["dicom_id"]].cells["split"] for row in own} if splits is not None else set()
            studies.append(
                Study(
                    study_id=study_id,
                    patient_id=subject,
                    images=tuple(self._image(row, fact, files) for row, fact in zip(own, facts, strict=True)),
                    report=text,
                    language=self.card.language if text else None,
                    labels=named[0] or (dict.fromkeys(self.card.labels, NOT_MENTIONED) if labels else {}),
                    attributes={"label_source": named[1]} | ({"study_time": time} if time else {}) | _facts(listed),
                    date=date,
                    split=self.card.adapter["splits"][own_splits.pop()] if own_splits else None,
                    subsets=tuple(sorted({name for name, _ in listed})),
                )
            )
            self.counts.update(f"images of the list {name}" for name, _ in listed)
        self._edition["reports"] = reports.kind
        if labels:
            table = f"mimic-cxr-2.0.0-{self.options['labels']}"
            refuse_no_match(self, studies, "studies without a row of labels", "labels", table)
        if reports.kind != "none":
            refuse_no_match(self, studies, "studies without a report", "report", f"the reports ({reports.kind})")
        check_patients_apart(self, studies, "Download the table of splits again.")
        yield from studies

    def table_rows(self, name: str, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, list[Row]]:
        """Return the name and the rows of `<name>.csv.gz` or `<name>.csv`.

        Raises:
            UserError: It is missing, cannot be read, or lacks a column.
        """
        if not self.has_table(name) and name.startswith(FROM_JPG_EDITION):
            without = self._without(name)
            fix = f"{self.place_of_tables}{f', or set {without}' if without else ''}."
            raise UserError(f"{name}.csv.gz is missing.", self.root, fix)
        path = table_path(self, f"{name}.csv.gz", f"{name}.csv")
        return path.name, read_csv(path, tuple(columns), tuple(optional))

    def _without(self, name: str) -> str:
        """Return the option that does without a table, blank where there is none."""
        if name == SPLIT:
            return "options.split=none" if "split" in self.options else ""
        if name == RADIOLOGIST:
            return "options.test_labels=automatic"
        return "options.labels=none, or the other labeler" if name.endswith(self.options["labels"]) else ""

    def has_table(self, name: str) -> bool:
        """Tell whether a table is there."""
        return any((self.root / f"{name}{suffix}").is_file() for suffix in (".csv.gz", ".csv"))

    def _splits(self) -> dict[str, Row] | None:
        if self.options.get("split") == "none":
            return None
        table, rows = self.table_rows(SPLIT, (*IDS, "split"))
        return unique_rows(self, rows, lambda row: row.cells["dicom_id"], table)

    def _labels(self) -> dict[str, tuple[dict[str, float], str]]:
        """Return study id -> labels, and who gave them; a radiologist's replace those of the labeler where asked."""
        labeler = self.options["labels"]
        if labeler == "none":
            return {}
        labels = self._label_table(f"mimic-cxr-2.0.0-{labeler}", labeler, {label: label for label in self.card.labels})
        if self.options["test_labels"] == "radiologist":
            spelling = {label: name for name, label in self.card.label_aliases.items()}
            columns = {label: spelling.get(label, label) for label in self.card.labels}
            labels |= self._label_table(RADIOLOGIST, "radiologist", columns)
        return labels

    def _label_table(self, name: str, who: str, columns: Mapping[str, str]) -> dict[str, tuple[dict[str, float], str]]:
        table, rows = self.table_rows(name, ("study_id", *columns.values()))
        labels = {}
        for study_id, row in unique_rows(self, rows, lambda row: row.cells["study_id"], table, "study").items():
            try:
                labels[study_id] = {label: label_value(row.cells[name]) for label, name in columns.items()}, who
            except ValueError as error:
                fix = "Correct the row; the study is kept without its labels."
                self.problem(f"{table}:{row.line}", str(error), fix, study_id)
        return labels

    def _grouped(
        self, records: Mapping[str, Row], splits: Mapping[str, Row] | None, files: Mapping[str, str], table: str
    ) -> Iterator[tuple[str, list[Row]]]:
        """Yield study id and the rows of its usable images, by patient and study."""
        grouped: dict[str, list[Row]] = {}
        for dicom_id, row in sorted(records.items()):
            mistake = self._mistake(row, None if splits is None else splits.get(dicom_id), splits is not None, files)
            if mistake:
                self.problem(f"{table}:{row.line}", *mistake, row.cells["study_id"])
            else:
                grouped.setdefault(row.cells["study_id"], []).append(row)
        for study_id, rows in sorted(grouped.items(), key=lambda item: (item[1][0].cells["subject_id"], item[0])):
            subjects = {row.cells["subject_id"] for row in rows}
            own = {splits[row.cells["dicom_id"]].cells["split"] for row in rows} if splits is not None else set()
            if len(subjects) > 1 or len(own) > 1:
                what = "belongs to several patients" if len(subjects) > 1 else f"is in {' and '.join(sorted(own))}"
                self.problem(
                    f"{table}:{rows[0].line}", f"study {study_id} {what}", "Download the table again.", study_id
                )
                continue
            yield study_id, rows

    def _mistake(
        self, row: Row, split: Row | None, splits_known: bool, files: Mapping[str, str]
    ) -> tuple[str, str] | None:
        """Return what is wrong with the row of an image: reason and next step."""
        dicom_id, subject, study = (row.cells[column] for column in IDS)
        if not _SUBJECT.fullmatch(subject) or not _STUDY.fullmatch(study) or not dicom_id:
            return f"'{subject}' and '{study}' are no ids of a patient and a study", "Download the table again."
        path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom_id}{self.suffix}"
        if row.cells.get("path", "") not in ("", path):
            return f"the path {row.cells['path']} is not that of the ids", "Download the table again."
        if splits_known and split is None:
            return f"{dicom_id} is in no official split", "Add it to the table of splits, or set options.split=none."
        if split is not None:
            if (split.cells["subject_id"], split.cells["study_id"]) != (subject, study):
                return f"the table of splits gives {dicom_id} to another study", "Download the tables again."
            if split.cells["split"] not in self.card.adapter["splits"]:
                return f"unknown split '{split.cells['split']}'", "Download the table of splits again."
        if dicom_id not in files:
            return f"row without image: {path} is missing", "Download the image, or remove the row."
        if files[dicom_id] != path:
            return f"the image is at {files[dicom_id]}, not at {path}", "Move it to its place."
        return None

    def _image(self, row: Row, facts: Mapping[str, str], files: Mapping[str, str]) -> ImageRef:
        dicom_id, position = row.cells["dicom_id"], facts.get("ViewPosition", "").upper()
        view = self.card.adapter["views"].get(position)
        if view is None:
            self.counts[f"view {position or 'not given'}, read as unknown"] += 1
        return ImageRef(dicom_id, files[dicom_id], self.card.modality, view)


def _facts(listed: Sequence[tuple[str, Listed]]) -> dict[str, str]:
    """Return the attributes of a study with images of lists: of each list the first image by its id."""
    found: dict[str, str] = {}
    for name, one in sorted(listed, key=lambda item: (item[0], item[1].image_id), reverse=True):
        found |= {f"image_{name}": one.image_id} | ({f"class_{name}": one.classes} if one.classes else {})
    return found


def _when(facts: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return (YYYYMMDD, HHMMSS): a time is a number that has lost its leading zeros (93014.531 is 09:30:14)."""
    time = number(facts.get("StudyTime", ""))
    return yyyymmdd(facts.get("StudyDate", "")), f"{int(time):06d}" if 0 <= time < 240000 else None
