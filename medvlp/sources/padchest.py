"""PadChest: one table with list cells, 16-bit PNG files in numbered folders, Spanish reports or a translation.

Guarantee: labels are whole terms of the `Labels` cell, never parts of words and never those of single sentences; only
the year of birth is read, and it leaves the adapter as an age.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from medvlp.errors import UserError, nearest
from medvlp.sources._checks import name_unlisted, refuse_no_match, unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._values import OLDEST_AGE, sex, yyyymmdd
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, ImageRef, Study

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = ("ImageID", "StudyID", "PatientID", "Projection", "Labels", "PhotometricInterpretation_DICOM")
OPTIONAL = (
    *("ImageDir", "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "Manufacturer_DICOM", "ReportID", "Report"),
    *("MethodLabel", "Localizations", "labelCUIS", "LocalizationsCUIS"),
)
FOLDERS = ("*", "*/*", "images/*/*")
_CUI = re.compile(r"'(C\d{7})'")
_REPAIR = "Download the table again."
_NEXT = {
    "no label is given": "Nothing to do: about 100 rows of the release have none.",
    "unknown label": "Correct the spelling; if the release has this term, report that the data card lacks it.",
}
"""How a mistake in a cell of labels begins -> next step, where that is not to download the table again."""


class PadChest(Source):
    """The data set below a root folder; see `data_cards/padchest.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per examination that has a usable image, by patient and study.

        Raises:
            UserError: The table, a column or the translation is missing, no image is there, or no study finds its
                report in the translation.
        """
        self.problems, self.counts = [], Counter()
        path = table_path(self, TABLE, f"{TABLE}.gz")
        translated = self._translation(path.name)
        column = "" if self.options["language"] == "es" or translated is not None else self.options["translation"]
        rows = read_csv(path, (*COLUMNS, *filter(None, [column])), OPTIONAL)
        self.check_counts({"images": len({row.cells["ImageID"] for row in rows})}, "images")
        files = index_files(self, FOLDERS, (".png",), by="name")
        require_files(self, files, "0/*.png to 54/*.png")
        name_unlisted(self, files, (row.cells["ImageID"] for row in rows), path.name)
        grouped: dict[str, list[tuple[Row, str]]] = {}
        for row in unique_rows(self, rows, lambda row: row.cells["ImageID"], path.name).values():
            mistake = self._mistake(row, files)
            if mistake:
                self.problem(f"{path.name}:{row.line}", *mistake, row.cells["StudyID"])
                continue
            cells = row.cells
            text = cells[column or "Report"] if translated is None else translated.get(cells["ReportID"], "")
            grouped.setdefault(cells["StudyID"], []).append((row, text))
        made = [self._study(name, own, files, path.name) for name, own in sorted(grouped.items())]
        studies = sorted((study for study in made if study), key=lambda study: (study.patient_id, study.study_id))
        if translated is not None:
            refuse_no_match(self, studies, "studies without a report", "report", str(self.options["translation"]))
        yield from studies

    def _translation(self, table: str) -> dict[str, str] | None:
        """Return report id -> text of the user's file of translations, None where the reports are in the table."""
        name = str(self.options["translation"])
        if self.options["language"] == "es" or not name.endswith((".csv", ".csv.gz")):
            return None
        if not (self.root / name).is_file():
            fix = (
                f"Put a table with ReportID and Report there, or name it or a column of {table} in options.translation."
            )
            raise UserError(f"The English reports are missing: {name}.", self.root / name, fix)
        rows = unique_rows(
            self,
            read_csv(self.root / name, ("ReportID", "Report")),
            lambda row: row.cells["ReportID"],
            name,
            "report",
        )
        return {report_id: row.cells["Report"] for report_id, row in rows.items()}

    def _mistake(self, row: Row, files: Mapping[str, str]) -> tuple[str, str] | None:
        """Return why the image of a row cannot be used: reason and next step."""
        cells, name = row.cells, row.cells["ImageID"]
        if name in self.card.adapter["corrupt"]:
            return f"{name} is known to be broken in the release", "Nothing to do: it is left out."
        if name not in files:
            known = " (it is known to be missing in the release)" if name in self.card.adapter["missing"] else ""
            return f"row without image: {name} is in no folder{known}", "Download the image, or remove the row."
        if not cells["StudyID"] or not cells["PatientID"]:
            return "the row names no study or no patient", _REPAIR
        if cells["Projection"] == "EXCLUDE":
            return "the authors exclude the image (projection EXCLUDE)", "Nothing to do: it is left out."
        if cells["Projection"] not in self.card.adapter["views"]:
            return f"unknown projection '{cells['Projection']}'", _REPAIR
        if cells["PhotometricInterpretation_DICOM"] == "MONOCHROME1" and self.options["monochrome1"] == "refuse":
            fix = "Look whether such images are inverted; if they are not, set options.monochrome1=keep."
            return "the DICOM file was MONOCHROME1, and nobody says whether its PNG is inverted", fix
        return None

    def _labels(self, cell: str) -> tuple[dict[str, float], str | None]:
        """Return the labels of a cell, and what is wrong with it."""
        terms = _terms(cell)
        if terms is None:
            return {}, "no label is given" if cell.lower() in ("", "nan") else f"the labels '{cell}' are no list"
        terms = {self.card.label_aliases.get(term, term) for term in terms}
        if not terms:
            return {}, "no label is given"
        for term in sorted(terms - set(self.card.labels)):
            return {}, f"unknown label '{term}'.{nearest(term, list(self.card.labels))}"
        normal = str(self.card.normal_label)
        if normal in terms and terms - {normal, *self.card.adapter["no_findings"]}:
            self.counts[f"studies with '{normal}' beside a finding, read as not {normal}"] += 1
            terms.discard(normal)
        return {label: PRESENT if label in terms else ABSENT for label in self.card.labels}, None

    def _study(self, study_id: str, own: list[tuple[Row, str]], files: Mapping[str, str], table: str) -> Study | None:
        own = sorted(own, key=lambda item: item[0].cells["ImageID"])
        first, text = own[0]
        cells = first.cells
        mistake = None
        for what in ("PatientID", "Labels", "ReportID", "MethodLabel"):
            if len({row.cells[what] for row, _ in own}) > 1:
                mistake = f"the rows of study {study_id} differ in {what}; none is kept"
        labels, wrong = self._labels(cells["Labels"])
        if mistake or wrong:
            for row, _ in own:
                fix = _REPAIR if mistake else _NEXT.get(str(wrong).split(" '")[0], _REPAIR)
                self.problem(f"{table}:{row.line}", str(mistake or wrong), fix, study_id)
            return None
        self.counts["studies without a report"] += not text
        return Study(
            study_id=study_id,
            patient_id=cells["PatientID"],
            images=tuple(self._image(row, files) for row, _ in own),
            report=text or None,
            language=self.options["language"] if text else None,
            labels=labels,
            attributes=self._attributes(cells),
            age=self._age(cells),
            sex=sex(cells["PatientSex_DICOM"]),
            date=yyyymmdd(cells["StudyDate_DICOM"]),
        )

    def _image(self, row: Row, files: Mapping[str, str]) -> ImageRef:
        name = row.cells["ImageID"]
        view = self.card.adapter["views"][row.cells["Projection"]]
        return ImageRef(name.removesuffix(".png"), files[name], self.card.modality, view)

    @staticmethod
    def _attributes(cells: Mapping[str, str]) -> dict[str, str]:
        given: dict[str, Any] = {
            "method_label": cells["MethodLabel"],
            "localizations": "|".join(sorted(_terms(cells["Localizations"]) or ())),
            "label_cuis": "|".join(_CUI.findall(cells["labelCUIS"])),
            "localization_cuis": "|".join(_CUI.findall(cells["LocalizationsCUIS"])),
            "manufacturer": cells["Manufacturer_DICOM"],
            "photometric_interpretation": cells["PhotometricInterpretation_DICOM"],
        }
        return {name: value for name, value in given.items() if value}

    def _age(self, cells: Mapping[str, str]) -> float | None:
        """Return the difference of the years of study and birth, None where one is missing or it is impossible."""
        born, studied = (re.match(r"\d{4}", cells[name]) for name in ("PatientBirth", "StudyDate_DICOM"))
        if born is None or studied is None:
            self.counts["ages not given"] += 1
            return None
        years = int(studied[0]) - int(born[0])
        if not 0 <= years <= OLDEST_AGE:
            self.counts["ages impossible, read as unknown"] += 1
            return None
        return float(years)


def _terms(cell: str) -> set[str] | None:
    """Return the terms of a cell that holds a Python list of texts, without blanks; None where it is none."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(found, list) or not all(isinstance(term, str) for term in found):
        return None
    return {term.strip() for term in found} - {""}
