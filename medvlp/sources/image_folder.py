"""A folder of PNG or JPEG files, or of volumes: with a table, or with one folder per class.

Guarantee: a row belongs to the one picture that it can mean; what each column was taken for is recorded. Pictures
without row, rows without picture and rows that contradict each other are problems. Studies come in the order of paths.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart
from medvlp.sources._csv import Row
from medvlp.sources._dicom_heap import VOLUMES
from medvlp.sources._label_columns import Chosen, Labels, check_classes, find_labels
from medvlp.sources._pictures import Pictures, only_file
from medvlp.sources._tables import (
    COLUMNS,
    Table,
    name_columns,
    open_table,
    report_reader,
    sex_reader,
    split_of,
    view_of,
)
from medvlp.sources._values import age_years
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, ImageRef, Study

logger = logging.getLogger(__name__)


class ImageFolder(Source):
    """The folder; see `data_cards/image_folder.md`."""

    _labels = Labels()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns of the table, or the classes."""
        return self._labels.names

    @property
    def kind(self) -> Literal["image", "volume", "video", "none"]:
        """Volumes where the user names CT, MR or PT, else images."""
        return "volume" if self.options["modality"] in VOLUMES else "image"

    def summary(self) -> dict[str, object]:
        """Return what was counted, and what each column was taken for."""
        return {**super().summary(), **self._chosen.facts}

    def studies(self) -> Iterator[Study]:
        """Yield one study per picture, or per value of the column of studies.

        Raises:
            UserError: There is no picture, the table names none, or patients are in several splits.
        """
        self.problems, self.counts, self._chosen, self._labels = [], Counter(), Chosen(), Labels()
        pictures = Pictures(self, volumes=self.kind == "volume")
        path = only_file(self.root, "*.csv", "table", self.options["table"])
        if path is None:
            studies = self._by_class(pictures)
        else:
            table = open_table(path, self.options["encoding"])
            columns = {name: table.column(names) for name, names in COLUMNS.items() if name != "classes"}
            used = {*name_columns(table), *(name for name in columns.values() if name)}
            self._labels = find_labels(table, used, self.options["label_columns"], path, self.options["label_values"])
            if columns["path"] is None:
                fix = f"Name one path or filename; the columns are {', '.join(table.columns)}."
                raise UserError("The table has no column of pictures.", path, fix)
            studies = self._merged(table, self._by_table(table, pictures, columns))
            if not studies:
                fix = f"The column {columns['path']} must name files below the root."
                raise UserError("No row of the table belongs to a picture.", path, fix)
        check_patients_apart(self, studies, "Correct the column of splits: each patient in one split.")
        for fact, column in self._chosen.facts.items():
            logger.info("%s: %s", fact, column)
        yield from studies

    def _by_class(self, pictures: Pictures) -> list[Study]:
        """Read `CLASS/x.png` or `SPLIT/CLASS/x.png`; pictures that lie otherwise are problems, unless all lie flat."""
        folders = [PurePosixPath(path).parts[:-1] for path in pictures.paths]
        flat, splits = not any(folders), {folder[0] for folder in folders if folder}
        in_splits = bool(splits) and all(_is_split(name) for name in splits)
        depth = 0 if flat else 1 + in_splits
        named = Counter(folder[-1] for folder in folders if len(folder) == depth and folder)
        self._labels = Labels(self._classes_of(named))
        classes = self._labels.names
        self._chosen.facts["labels"] = f"folders: {', '.join(classes)}" if classes else "none"
        studies = []
        for path, folder in zip(pictures.paths, folders, strict=True):
            if len(folder) != depth or (folder and folder[-1] not in classes):
                self.problem(path, "the picture is not in a folder of its class", "Move it, or add a table.", path)
                continue
            studies.append(
                Study(
                    study_id=path,
                    patient_id=UNKNOWN_PATIENT,
                    images=(ImageRef(path, path, str(self.options["modality"])),),
                    labels={name: PRESENT if name == folder[-1] else ABSENT for name in classes},
                    split=split_of(folder[0]) if in_splits else None,
                )
            )
        return studies

    def _classes_of(self, named: Counter[str]) -> tuple[str, ...]:
        """Return the folders that are classes: those that the user names, else all."""
        declared = self.options["label_columns"]
        if declared is not None:
            return tuple(str(name) for name in (declared if isinstance(declared, list | tuple) else [declared]))
        fix = "Add a table; or, where the folders are classes all the same, list them in options.label_columns."
        check_classes(named, "The names of the folders", self.root, fix)
        return tuple(sorted(named))

    def _by_table(self, table: Table, pictures: Pictures, columns: dict[str, str | None]) -> list[tuple[Row, Study]]:
        """Return a study per row whose picture is there, in the order of the table."""
        reader = report_reader(table)
        meanings = {name: column for name, column in columns.items() if name != "report"}
        names = name_columns(table)
        meanings["names of people, removed from reports"] = ", ".join(names)
        self._chosen.note(table, {**meanings, "report": ", ".join(reader[0]) if reader else None}, self._labels)
        sex = sex_reader(row.cells[columns["sex"]] for row in table.rows) if columns["sex"] else None
        found = []
        for row in table.rows:
            cells: dict[str, str] = {name: row.cells[column] for name, column in columns.items() if column}
            where, path = f"{table.file}:{row.line}", ""
            try:
                path = pictures.find(cells["path"])
                study = Study(
                    study_id=cells.get("study") or path,
                    patient_id=cells.get("patient") or UNKNOWN_PATIENT,
                    images=(ImageRef(path, path, str(self.options["modality"]), view_of(cells.get("view", ""))),),
                    report=reader[1](row) if reader else None,
                    labels=self._labels.read(row),
                    age=age_years(cells.get("age", "")),
                    sex=sex(cells["sex"]) if sex else None,
                    split=split_of(cells.get("split", "")),
                    identifiers=tuple(row.cells[column] for column in names if row.cells[column]),
                )
            except ValueError as error:
                self.problem(where, str(error), "Correct the row, or remove it.", path or None)
            else:
                found.append((row, study))
                for name, value in (("age", study.age), ("sex", study.sex)):
                    if value is None and cells.get(name):
                        self.counts[f"cells of {name} that cannot be read, unknown"] += 1
            if path:
                self.counts["rows of pictures"] += 1
        named = {study.images[0].path for _, study in found} | {problem.study_id for problem in self.problems}
        for path in sorted(set(pictures.paths) - named):
            self.problem(path, "the picture is not in the table", "Add its row, or remove the picture.", path)
        return found

    def _merged(self, table: Table, found: list[tuple[Row, Study]]) -> list[Study]:
        """Join the pictures of one study; its rows must agree in all but the picture."""
        groups: dict[str, list[tuple[Row, Study]]] = {}
        for row, study in found:
            groups.setdefault(study.study_id, []).append((row, study))
        merged = []
        for name, group in groups.items():
            lines = ", ".join(str(row.line) for row, _ in group)
            if len({repr(replace(study, images=())) for _, study in group}) > 1 or _differ(group):
                for row, _ in group:
                    reason = f"lines {lines} contradict each other; none is used"
                    self.problem(f"{table.file}:{row.line}", reason, "Keep what is right.", name)
                continue
            images: dict[str, ImageRef] = {}
            for row, study in group:
                image = study.images[0]
                if image.path in images:
                    reason = "the picture is on a row before that says the same; the first is kept"
                    self.problem(f"{table.file}:{row.line}", reason, "Remove the row.", name)
                images.setdefault(image.path, image)
            merged.append(replace(group[0][1], images=tuple(images[path] for path in sorted(images))))
        return sorted(merged, key=lambda study: (study.images[0].path, study.study_id))


def _differ(group: list[Any]) -> bool:
    """Tell whether rows give one picture several views."""
    images = {study.images[0] for _, study in group}
    return len(images) > len({image.path for image in images})


def _is_split(name: str) -> bool:
    try:
        return split_of(name) is not None
    except ValueError:
        return False
