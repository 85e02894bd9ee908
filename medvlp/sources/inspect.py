"""INSPECT: CT pulmonary angiographies with impressions, embolism labels and outcomes, in tab-separated tables.

Guarantee: tables are joined by `impression_id` alone; a censored outcome is not mentioned, never absent. Studies come
in the order of their ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart, name_unlisted, unique_rows
from medvlp.sources._csv import Row, csv_columns, read_csv
from medvlp.sources._files import require_files
from medvlp.sources._report import join_sections
from medvlp.sources._values import yyyymmdd
from medvlp.sources._volumes import nifti_files, without_nifti_suffix
from medvlp.sources.base import Source
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, ImageRef, Intensity, Study, VolumeFacts

KEY = "impression_id"
SPLITS = {"train": "train", "valid": "val", "test": "test"}
_VALUES = {"true": PRESENT, "false": ABSENT, "1": PRESENT, "0": ABSENT, "1.0": PRESENT, "0.0": ABSENT}
_UNKNOWN = ("censored", "")


class Inspect(Source):
    """The data set below a root folder; see `data_cards/inspect.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per row of the mapping, in the order of the ids.

        Raises:
            UserError: A table or column is missing, no volume is there, patients are in two splits, or a full edition
                has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        folder = self._folder()
        mapping = self._rows(folder, "study_mapping", (KEY, "person_id", "image_id"), ("procedure_DATETIME",))
        splits = self._rows(folder, "splits", (KEY, "split"))
        impressions = self._rows(folder, "impressions", (KEY, "impressions"))
        labels = self._rows(folder, "labels", (KEY,), self.card.labels)
        self._name_absent_labels(folder)
        for table, rows in (("splits", splits), ("impressions", impressions), ("labels", labels)):
            self.counts[f"rows of the {table} without a study"] = len(set(rows) - set(mapping))
        self.check_counts(
            {"studies": len(mapping), "patients": len({row.cells["person_id"] for row in mapping.values()})}, "studies"
        )
        below = (folder / "CTPA").relative_to(self.root).as_posix()
        files = nifti_files(self, [f"{below}/*"])
        require_files(self, files, "CTPA/*.nii.gz")
        shared = Counter(_image(row) for row in mapping.values())
        studies = []
        for name, row in sorted(mapping.items()):
            try:
                if shared[_image(row)] > 1:
                    raise ValueError(f"the CT {_image(row)} belongs to {shared[_image(row)]} ids")
                studies.append(self._study(name, row, files, splits, impressions, labels))
            except ValueError as error:
                self.problem(f"study_mapping:{row.line}", str(error), "Correct the tables, or download again.", name)
        name_unlisted(self, files, shared, "the study mapping")
        check_patients_apart(self, studies, "Download the splits again.")
        yield from studies

    def _folder(self) -> Path:
        """Return the folder that holds the tables."""
        folders = [self.root, *(path for level in ("full", "*/full") for path in sorted(self.root.glob(level)))]
        for folder in folders:
            if list(folder.glob("study_mapping*.tsv")):
                return folder
        where = "the root or in full/"
        raise UserError(f"There is no study_mapping*.tsv in {where}.", self.root, "Give the folder of the tables.")

    def _table(self, folder: Path, start: str) -> Path:
        found = sorted(path for path in folder.glob(f"{start}*.tsv") if not path.name.startswith("."))
        if len(found) != 1:
            what = f"There are {len(found)} tables {start}*.tsv, one is needed."
            raise UserError(what, folder, "Keep the tables of one release beside each other.")
        return found[0]

    def _rows(
        self, folder: Path, start: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, Row]:
        path = self._table(folder, start)
        rows = read_csv(path, columns, optional, delimiter="\t")
        return unique_rows(self, rows, lambda row: row.cells[KEY], path.name, "study")

    def _name_absent_labels(self, folder: Path) -> None:
        path = self._table(folder, "labels")
        columns = csv_columns(path, "\t")
        absent = [label for label in self.card.labels if label not in columns]
        if len(absent) == len(self.card.labels):
            fix = f"Download it again; the labels are {', '.join(self.card.labels)}."
            raise UserError(f"{path.name} has no label column.", path, fix)
        self.counts.update(f"label {label}: no column, not mentioned" for label in absent)

    def _study(
        self, name: str, row: Row, files: Mapping[str, str], splits: Mapping[str, Row],
        impressions: Mapping[str, Row], labels: Mapping[str, Row],
    ) -> Study:  # fmt: skip
        """Return one study.

        Raises:
            ValueError: It cannot be used; the message says why.
        """
        image = _image(row)
        if not row.cells["person_id"]:
            raise ValueError("the row names no person")
        if image not in files:
            raise ValueError(f"row without CT: {image} is not in CTPA/")
        for table, rows in (("splits", splits), ("labels", labels)):
            if name not in rows:
                raise ValueError(f"{name} has no (or no unambiguous) row in the {table}")
        split = splits[name].cells["split"]
        if split not in SPLITS:
            raise ValueError(f"unknown split '{split}'")
        text = impressions[name].cells["impressions"] if name in impressions else ""
        report = join_sections([("IMPRESSION", text)])
        self.counts["studies without impression"] += report is None
        date = yyyymmdd(row.cells["procedure_DATETIME"])
        self.counts["studies without a date"] += date is None
        return Study(
            study_id=name,
            patient_id=row.cells["person_id"],
            images=(ImageRef(image, files[image], "CT", facts=VolumeFacts(Intensity.HU)),),
            report=report,
            labels={label: self._value(labels[name].cells[label]) for label in self.card.labels},
            language=self.card.language if report else None,
            date=date,
            split=SPLITS[split],
        )

    def _value(self, cell: str) -> float:
        text = cell.lower()
        if text in _UNKNOWN:
            self.counts["labels censored, not mentioned"] += text == "censored"
            return NOT_MENTIONED
        if text not in _VALUES:
            raise ValueError(f"a label is '{cell}'; True, False, 1, 0, Censored or blank are allowed")
        return _VALUES[text]


def _image(row: Row) -> str:
    return without_nifti_suffix(row.cells["image_id"])
