"""A folder of DICOM files of a hospital, with tables of labels and reports.

Guarantee: a row is tied to files only by an id that both have; which column and which kind of id that is, is recorded.
Rows without file, files without row, and rows that contradict each other are problems; nothing is filled in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart
from medvlp.sources._csv import Row
from medvlp.sources._dicom_heap import VOLUMES, names_of, read_heap
from medvlp.sources._heap_item import Item
from medvlp.sources._keyed_tables import FINE, KEYS, Keyed, tie
from medvlp.sources._label_columns import Chosen, Labels, find_labels
from medvlp.sources._tables import COLUMNS, name_columns, report_reader, split_of
from medvlp.sources.base import Source
from medvlp.types import Study

_WORDS = "'{positive: 1, negative: 0}'"
logger = logging.getLogger(__name__)


class DicomFolder(Source):
    """The folder that was exported; see `data_cards/dicom_folder.md`."""

    _modality = "CR"
    _labels = Labels()

    @property
    def kind(self) -> Literal["image", "volume", "video", "none"]:
        """Volumes where CT, MR or PT was found or asked for, else images."""
        return "volume" if self._modality in VOLUMES else "image"

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns of the table."""
        return self._labels.names

    def summary(self) -> dict[str, object]:
        """Return what was counted, and what each column was taken for."""
        return {**super().summary(), **self._chosen.facts}

    def studies(self) -> Iterator[Study]:
        """Yield one study per examination; per file or series where the labels name these.

        Raises:
            UserError: There is no image of the kind, a table is missing or names none of the files, or patients are in
                several splits.
        """
        self.problems, self.counts, self._chosen, self._labels = [], Counter(), Chosen(), Labels()
        items, self._modality = read_heap(self, str(self.options["modality"]))
        for what, count in sorted(self.counts.items()):
            logger.info("%s: %d", what, count)
        tables = {option: tie(self, option, items) for option in ("labels", "reports")}
        self._readers = [reader for option, keyed in tables.items() if keyed for reader in self._columns(option, keyed)]
        for fact, column in self._chosen.facts.items():
            logger.info("%s: %s", fact, column)
        fine = tables["labels"] is not None and tables["labels"].kind in FINE
        units: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            units.setdefault(item.image.image_id if fine else item.study, []).append(number)
        studies = [self._study(name, own, items, tables) for name, own in units.items()]
        check_patients_apart(self, studies, "Correct the column of splits: each patient in one split.")
        yield from studies

    def _columns(self, option: str, keyed: Keyed) -> Iterator[tuple[str, str, Callable[[Row], object]]]:
        """Yield (option, field of the study, how to read it from a row), and record what the columns were taken for."""
        table, split = keyed.table, keyed.table.column(COLUMNS["split"])
        meanings = {f"tied to files by the {keyed.kind}": keyed.column, "split": split}
        if names := name_columns(table):
            meanings["names of people, removed from reports"] = ", ".join(names)
        patient = table.column(KEYS["patient"])
        if patient != keyed.column:
            compared = "compared with" if keyed.compares_patients else "NOT compared: it holds none of the ids in"
            meanings[f"patient, {compared} the headers"] = patient
        if option == "labels":
            others = {table.column(COLUMNS[name]) for name in ("age", "sex", "view")}
            used = {name for name in (*keyed.id_columns, *names, split, *others) if name}
            self._labels = find_labels(
                table, used, self.options["label_columns"], keyed.path, self.options["label_values"]
            )
            if not self._labels.names and split is None:
                fix = (
                    f"Label columns hold 1, 0, -1 or nothing; options.label_values says what words mean, e.g. {_WORDS}."
                )
                raise UserError(
                    f"No column of the {table.name} holds labels: {', '.join(table.columns)}.", keyed.path, fix
                )
            yield option, "labels", self._labels.read
        else:
            reader = report_reader(table)
            if reader is None:
                fix = f"Name one report, text, findings or impression; the columns are {', '.join(table.columns)}."
                raise UserError(f"The {table.name} has no column of a report.", keyed.path, fix)
            meanings["report"] = ", ".join(reader[0])
            yield option, "report", reader[1]
        self._chosen.note(table, meanings, self._labels if option == "labels" else None)
        if split is not None:
            yield option, "split", lambda row: split_of(row.cells[split])

    def _study(
        self, name: str, numbers: Sequence[int], items: Sequence[Item], tables: dict[str, Keyed | None]
    ) -> Study:
        own = [items[number] for number in numbers]
        first = own[0]
        rows = {option: keyed.row(self, name, numbers) for option, keyed in tables.items() if keyed is not None}
        said: dict[str, object] = {}
        for option, field, read in self._readers:
            row = rows[option]
            try:
                value = None if row is None else read(row)
            except ValueError as error:
                where = f"{tables[option].table.file}:{row.line}"  # type: ignore[union-attr]
                self.problem(where, str(error), f"Correct the cell; the examination is kept without {field}.", name)
                continue
            if said.get(field) not in (None, value):
                fix = "Correct one of the tables; the examination is kept without a split."
                self.problem("labels and reports", f"the tables give it another {field} each", fix, name)
                said[field] = None
            elif value is not None:
                said[field] = value
        report = said.get("report")
        people = [
            row.cells[column]
            for option, row in rows.items()
            if row is not None
            for column in name_columns(tables[option].table)  # type: ignore[union-attr]
        ]
        identifiers = self._identifiers(own, people)
        return Study(
            study_id=name,
            patient_id=first.patient,
            images=tuple(item.image for item in own),
            masks=tuple(mask for item in own for mask in item.masks),
            report=None if report is None or identifiers is None else str(report),
            labels=said.get("labels") or {},  # type: ignore[arg-type]
            attributes=first.attributes if identifiers is not None else {},
            age=first.age,
            sex=first.sex,
            date=first.date,
            split=said.get("split"),  # type: ignore[arg-type]
            identifiers=identifiers or (),
        )

    def _identifiers(self, items: Sequence[Item], people: Sequence[str]) -> tuple[str, ...] | None:
        """Return what headers and tables call the patient, the staff and the examination, for removal from texts.

        None where the names cannot be read: texts could then show them, and are left out.
        """
        first = items[0]
        try:
            names = names_of(self.root / first.image.path)
        except Exception:  # whatever a parser throws at a broken value
            fix = "Export the file again; the examination is kept without report and attributes."
            self.problem(first.image.path, "the names in its header cannot be read", fix, first.study)
            return None
        accessions = [value for item in items for value in item.keys["accession"]]
        return tuple(value for value in dict.fromkeys((*names, *people, first.patient, *accessions)) if value)
