"""CheXpert Plus: one table with reports and demographics, labels in JSON lines, images as PNG or DICOM.

Guarantee: a report is made of its named sections alone; the accession number is never read; labels belong to the report
and are compared over all images of a study.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._chexpert import ChexpertSource, Entry, file_key
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._files import table_path
from medvlp.sources._report import join_sections
from medvlp.sources._values import label_value, number
from medvlp.types import NOT_MENTIONED

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "section_findings", "section_impression")
SECTIONS = {
    "CLINICAL HISTORY": "section_clinical_history",
    "HISTORY": "section_history",
    "TECHNIQUE": "section_technique",
    "COMPARISON": "section_comparison",
    "FINDINGS": "section_findings",
    "IMPRESSION": "section_impression",
}
NARRATIVE = "section_narrative"


class ChexpertPlus(ChexpertSource):
    """The data set below a root folder; see `data_cards/chexpert_plus.md`."""

    tables = TABLE

    @property
    def suffix(self) -> str:
        """`.png` or `.dcm`, as the option says."""
        return str(self.card.adapter["suffixes"][self.options["images"]])

    def entries(self) -> list[Entry]:
        """Return the usable rows of the table.

        Raises:
            UserError: The table or the labels are missing, or the labels are those of other images.
        """
        wanted = (*SECTIONS.values(), NARRATIVE, *self.card.attributes, *self.card.measurements, "age", "sex")
        rows = read_csv(table_path(self, TABLE), (*COLUMNS, "split"), wanted)
        self.check_counts({"images": len(rows)}, "images")
        self.counts |= Counter(f"rows of split {row.cells['split']}" for row in rows)
        labels = self._labels()
        entries = []
        for row in unique_rows(self, rows, lambda row: file_key(row.cells["path_to_image"]), TABLE).values():
            entry = self._entry(row, labels)
            if entry is not None:
                entries.append(entry)
        if labels and entries and not any(entry.place.key in labels for entry in entries):
            fix = "Download both again, or set options.labels=none."
            raise UserError(f"No image of {TABLE} has labels: path_to_image differs.", self.root, fix)
        return entries

    def facts(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Return what the table says of patient and report, where all rows of the study say the same."""
        attributes = {name: value for name in self.card.attributes if (value := self.agreed(entries, name))}
        return {
            "attributes": attributes,
            "values": {name: number(self.agreed(entries, name)) for name in self.card.measurements},
        }

    def _entry(self, row: Row, labels: Mapping[str, Mapping[str, float]] | None) -> Entry | None:
        cells, where = row.cells, f"{TABLE}:{row.line}"
        place = self.place(cells["path_to_image"], where)
        if place is None:
            return None
        if cells["deid_patient_id"] != place.patient:
            reason = f"the path is that of {place.patient}, but deid_patient_id says {cells['deid_patient_id']}"
            self.problem(where, reason, "Download the table again.", place.study_id)
            return None
        if cells["split"] not in ("train", "valid"):
            self.problem(where, f"unknown split '{cells['split']}'", "Download the table again.", place.study_id)
            return None
        own: Mapping[str, float] = {}
        if labels is not None:
            self.counts["images without a line of labels"] += place.key not in labels
            own = labels.get(place.key, dict.fromkeys(self.card.labels, NOT_MENTIONED))
        named = {**cells, "side": cells["frontal_lateral"], "position": cells["ap_pa"]}
        return Entry(place, where, cells["split"], named, own, self._report(cells))

    @staticmethod
    def _report(cells: Mapping[str, str]) -> str | None:
        """Return the sections; the narrative stands in where there are neither findings nor an impression."""
        body = "" if cells["section_findings"] or cells["section_impression"] else cells[NARRATIVE]
        sections = join_sections((heading, cells[column]) for heading, column in SECTIONS.items())
        return "\n".join(filter(None, [body, sections])) or None

    def _labels(self) -> dict[str, dict[str, float]] | None:
        """Return key of the place -> labels, from JSON lines; None where the option asks for none."""
        part = self.options["labels"]
        if part == "none":
            return None
        path = table_path(self, f"chexbert_labels/{part}_fixed.json")
        name = path.relative_to(self.root).as_posix()
        labels: dict[str, dict[str, float]] = {}
        contradicting = set()
        for line, text in enumerate(read_text(path).splitlines(), start=1):
            if not text.strip():
                continue
            try:
                fields = json.loads(text)
                key = file_key(fields["path_to_image"])
                own = {label: label_value(_cell(fields[label])) for label in self.card.labels}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"no labels of an image ({type(error).__name__}: {error})"
                self.problem(f"{name}:{line}", reason, "Download the labels again; the study is kept without them.")
                continue
            if repr(labels.setdefault(key, own)) != repr(own):
                contradicting.add(key)
                reason = f"the labels of {key} differ from those of an earlier line; none is kept"
                self.problem(f"{name}:{line}", reason, "Download the labels again.")
        if not labels:
            fix = "Download it again; it must hold one JSON object a line. Or set options.labels=none."
            raise UserError(f"No line of {name} holds the labels of an image.", path, fix)
        return {key: own for key, own in labels.items() if key not in contradicting}


def _cell(value: object) -> str:
    return "" if value is None or value != value else str(value)
