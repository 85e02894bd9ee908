"""NIH ChestX-ray14: `Data_Entry_2017*.csv`, the two official lists, optional boxes, PNG files in one or twelve folders.

Guarantee: columns are found by name; studies come in the order of their file names, whatever the order of the CSV;
every row or image that is left out is a `Problem`, as the table in the card says. Counts of the full edition are
checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from medvlp.errors import UserError, nearest
from medvlp.sources._checks import box_mistake, unique_rows
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._values import age_years, number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, Box, ImageRef, Study

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")


class NihChestXray14(Source):
    """The data set below a root folder; see `data_cards/nih_chestxray14.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of the file names.

        Raises:
            UserError: A table or list is missing or empty, a column is missing, no image is there, a split is empty,
                patients are in both official lists, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        table = self._table()
        rows = read_csv(table, COLUMNS)
        lists = {split: self._list(name) for split, name in LISTS.items()}
        boxes = self._boxes({row.cells["Image Index"] for row in rows})
        self._count(table.name, rows, lists)
        images = self._images()
        kept = unique_rows(self, rows, lambda row: _stem(row.cells["Image Index"]), table.name)
        studies = []
        for _, row in sorted(kept.items()):
            study = self._study(row, lists, images, boxes.get(row.cells["Image Index"], ()), table.name)
            if study is not None:
                studies.append(study)
        known = {row.cells["Image Index"] for row in rows}
        for name in sorted(set(images) - known):
            self.problem(images[name], "not in the CSV", f"Add its row to {table.name}, or remove the image.")
        self._check_splits(studies)
        yield from studies

    def _table(self) -> Path:
        for name in TABLES:
            if (self.root / name).is_file():
                return self.root / name
        raise UserError(f"{TABLES[0]} is missing.", self.root, f"Put {' or '.join(TABLES)} into the root folder.")

    def _list(self, name: str) -> set[str]:
        path = self.root / name
        if not path.is_file():
            raise UserError(f"The official list {name} is missing.", path, "Download it beside the CSV.")
        names = {line.strip() for line in read_text(path).splitlines() if line.strip()}
        if not names:
            raise UserError(f"The official list {name} is empty: the split would be empty.", path, "Download it again.")
        return names

    def _images(self) -> dict[str, str]:
        """Return file name -> path relative to the root, for all PNG files of both layouts."""
        nested = sorted(self.root.glob("images_*/images"))
        folders = [self.root / "images", *nested, *sorted(self.root.glob("images_*"))]
        found: dict[str, str] = {}
        for folder in folders:
            for path in sorted(folder.glob("*.[pP][nN][gG]")) if folder.is_dir() else []:
                relative = path.relative_to(self.root).as_posix()
                if path.name.startswith("."):
                    continue
                if path.name in found:
                    fix = "Remove one of the two files; the first is kept."
                    self.problem(relative, f"the image is also at {found[path.name]}", fix)
                    continue
                found[path.name] = relative
        if not found:
            where = "images/ or images_001/images/ to images_012/images/"
            raise UserError(f"There is no PNG file in {where}.", self.root, "Unpack the images below the root folder.")
        return found

    def _study(
        self, row: Row, lists: Mapping[str, set[str]], images: Mapping[str, str], boxes: tuple[Box, ...], table: str
    ) -> Study | None:
        name = row.cells["Image Index"]
        where, study_id = f"{table}:{row.line}", _stem(name)
        patient = row.cells["Patient ID"]
        splits = [split for split, names in lists.items() if name in names]
        labels, mistake = self._labels(row.cells["Finding Labels"])
        if not mistake and not patient.isdecimal():
            mistake = f"Patient ID '{patient}' is no number", "Correct the row."
        if not mistake and re.match(r"\d{8}_", name) and int(name[:8]) != int(patient):
            mistake = f"the file name {name} belongs to another patient than Patient ID {patient}", "Correct the row."
        if not mistake and name not in images:
            mistake = f"row without image: {name} is in no image folder", "Download the image, or remove the row."
        if not mistake and len(splits) != 1:
            where_listed = "both official lists" if splits else "no official list"
            mistake = f"{name} is in {where_listed}", f"Name it in exactly one of {', '.join(LISTS.values())}."
        if mistake:
            self.problem(where, *mistake, study_id)
            return None
        return Study(
            study_id=study_id,
            patient_id=str(int(patient)),
            images=(ImageRef(study_id, images[name], self.card.modality, self._choice(row, "View Position", "PA AP")),),
            labels=labels,
            boxes=boxes,
            age=self._age(row.cells["Patient Age"]),
            sex=self._choice(row, "Patient Gender", "M F"),
            split=splits[0],
        )

    def _labels(self, cell: str) -> tuple[dict[str, float], tuple[str, str] | None]:
        """Return the labels of a cell `A|B`, and what is wrong with it: reason and next step."""
        normal = str(self.card.normal_label)
        names = {self.card.label_aliases.get(name.strip(), name.strip()) for name in cell.split("|")}
        if names == {""}:
            return {}, ("no label is given", f"Write the findings, or '{normal}'.")
        for name in sorted(names):
            if name not in self.card.label_columns:
                hint = nearest(name, list(self.card.label_columns))
                return {}, (f"unknown label '{name}'.{hint}", "Use the label names of the data card.")
        if normal in names and len(names) > 1:
            return {}, (f"'{normal}' stands together with a finding: {cell}", "Correct the row.")
        return {name: PRESENT if name in names else ABSENT for name in self.card.label_columns}, None

    def _age(self, cell: str) -> float | None:
        years = age_years(cell)
        if years is None:
            self.counts["ages impossible, read as unknown" if cell[:1].isdigit() else "ages not given"] += 1
        return years

    def _choice(self, row: Row, column: str, allowed: str) -> str | None:
        value = row.cells[column].upper()
        if value in allowed.split():
            return value
        self.counts[f"{column} not given"] += 1
        return None

    def _boxes(self, known: set[str]) -> dict[str, tuple[Box, ...]]:
        path = self.root / BOXES
        if not path.is_file():
            return {}
        boxes: dict[str, list[Box]] = {}
        for row in read_csv(path, BOX_COLUMNS):
            name, label = row.cells["Image Index"], row.cells["Finding Label"]
            label = self.card.label_aliases.get(label, label)
            if name not in known:
                self.counts["boxes of images that are not in the CSV"] += 1
                continue
            x, y, width, height = (number(row.cells[column]) for column in BOX_COLUMNS[2:])
            reason = box_mistake(x, y, width, height)
            if label not in self.card.labels:
                reason = f"box of unknown label '{label}'.{nearest(label, list(self.card.labels))}"
            if reason is None:
                boxes.setdefault(name, []).append(Box(_stem(name), label, x, y, width, height))
                continue
            fix = "Correct the row of the box; the study is kept without it."
            self.problem(f"{BOXES}:{row.line}", reason, fix, _stem(name))
        self.counts["boxes"] = sum(len(own) for own in boxes.values())
        return {name: tuple(own) for name, own in boxes.items()}

    def _count(self, table: str, rows: list[Row], lists: Mapping[str, set[str]]) -> None:
        """Compare a full edition with the card; name any other number of rows a subset."""
        cells = {row.cells["Image Index"]: row.cells for row in rows}
        found = {"images": len(cells), "patients": len({row["Patient ID"] for row in cells.values()})}
        if table == TABLES[0]:
            views = Counter(row["View Position"] for row in cells.values())
            labels = Counter(row["Finding Labels"] for row in cells.values())
            found |= {"view_PA": views["PA"], "view_AP": views["AP"]}
            found["label_No_Finding"] = labels[str(self.card.normal_label)]
        for split, name in (("train", "train_val"), ("test", "test")):
            patients = {cells[image]["Patient ID"] for image in lists[split] if image in cells}
            found |= {f"{name} images": len(lists[split]), f"{name} patients": len(patients)}
        self.check_counts(found, "images")

    def _check_splits(self, studies: list[Study]) -> None:
        patients = {split: {study.patient_id for study in studies if study.split == split} for split in LISTS}
        both = sorted(patients["train"] & patients["test"], key=int)
        if both:
            raise UserError(
                f"{len(both)} patients are in both official lists (the first: {both[0]}): results would be too good.",
                self.root,
                f"Download {' and '.join(LISTS.values())} again.",
            )
        for split, name in LISTS.items():
            if studies and not patients[split]:
                fix = "Check that list and CSV belong to each other."
                raise UserError(f"The split is empty: no usable image is in {name}.", self.root / name, fix)


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]
