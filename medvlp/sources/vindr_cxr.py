"""VinDr-CXR: DICOM files, labels of three readers for training images and their consensus for test images, boxes.

Guarantee: every reader's vote is kept as a number beside the label that the chosen agreement makes of it; every box
keeps its reader. No patient is made up: the tables name none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from medvlp.errors import nearest
from medvlp.sources._checks import box_mistake, name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._values import label_value, number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, UNCERTAIN, UNKNOWN_PATIENT, Box, ImageRef, Study

SPLITS = ("train", "test")
CORNERS = ("x_min", "y_min", "x_max", "y_max")


class VinDrCxr(Source):
    """The data set below a root folder; see `data_cards/vindr_cxr.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, training images first, by id.

        Raises:
            UserError: A table or a column is missing, no image is there, or a full edition has other counts than the
                card.
        """
        self.problems, self.counts = [], Counter()
        tables = {split: self._label_rows(split) for split in SPLITS}
        found = {f"{split} images": len({row.cells["image_id"] for row in rows}) for split, rows in tables.items()}
        self.check_counts(found | {"train rows": len(tables["train"])}, "train images")
        yield from [study for split in SPLITS for study in self._studies(split, tables[split])]

    def _label_rows(self, split: str) -> list[Row]:
        """Return the rows of a table of labels, with the labels under the card's names."""
        path = table_path(self, f"annotations/image_labels_{split}.csv")
        present = {name.strip().strip('"') for name in read_text(path).split("\n", 1)[0].split(",")}
        spelling = {label: name for name, label in self.card.label_aliases.items() if name in present}
        columns = {label: spelling.get(label, label) for label in self.card.label_columns}
        needed = ("image_id", *(["rad_id"] if split == "train" else []), *columns.values())
        return [
            Row(row.line, {**row.cells, **{label: row.cells[name] for label, name in columns.items()}})
            for row in read_csv(path, needed)
        ]

    def _studies(self, split: str, rows: list[Row]) -> list[Study]:
        table = f"annotations/image_labels_{split}.csv"
        files = index_files(self, (f"{split}/*",), (".dicom", ".dcm"))
        require_files(self, files, f"{split}/*.dicom")
        name_unlisted(self, files, (row.cells["image_id"] for row in rows), table)
        boxes = self._boxes(split, {row.cells["image_id"] for row in rows})
        readings: dict[str, list[Row]] = {}
        key = (lambda row: f"{row.cells['image_id']} {row.cells['rad_id']}") if split == "train" else _image_id
        for row in unique_rows(self, rows, key, table, "image and reader").values():
            readings.setdefault(row.cells["image_id"], []).append(row)
        studies = []
        for image_id, own in sorted(readings.items()):
            votes, mistake = self._votes(own, split)
            if not mistake and image_id not in files:
                mistake = f"row without image: {image_id} is not in {split}/", "Download the image, or remove its rows."
            if mistake:
                self.problem(f"{table}:{own[0].line}", *mistake, image_id)
                continue
            readers = len(own)
            values = {f"votes {label}": float(count) for label, count in votes.items()} if split == "train" else {}
            studies.append(
                Study(
                    study_id=image_id,
                    patient_id=UNKNOWN_PATIENT,
                    images=(ImageRef(image_id, files[image_id], self.card.modality, self.card.adapter["view"]),),
                    labels={label: self._agreed(label, count, readers) for label, count in votes.items()},
                    boxes=tuple(boxes.get(image_id, ())),
                    values=values,
                    split=split,
                )
            )
        return studies

    def _votes(self, readings: Sequence[Row], split: str) -> tuple[dict[str, int], tuple[str, str] | None]:
        """Return label -> readers who see it, and what is wrong with the rows of an image: reason and next step."""
        normal, names = str(self.card.normal_label), self.card.label_columns
        expected = int(self.card.adapter["readers"]) if split == "train" else 1
        if len(readings) != expected:
            return {}, (f"{len(readings)} readings in place of {expected}", "Download the table again.")
        votes = dict.fromkeys(names, 0)
        for row in readings:
            try:
                seen = {name for name in names if self._seen(row.cells[name])}
            except ValueError as error:
                return {}, (str(error), "Correct the row.")
            if normal in seen and len(seen) > 1:
                others = ", ".join(sorted(seen - {normal}))
                return {}, (f"'{normal}' stands together with {others} (line {row.line})", "Correct the row.")
            for name in seen:
                votes[name] += 1
        return votes, None

    @staticmethod
    def _seen(cell: str) -> bool:
        value = label_value(cell)
        if value not in (PRESENT, ABSENT):
            raise ValueError(f"a label is '{cell}'; 1 or 0 are allowed")
        return value == PRESENT

    def _agreed(self, label: str, votes: int, readers: int) -> float:
        """Return what the readers' votes say under the chosen agreement."""
        agreement = self.options["agreement"]
        if agreement == "majority":
            return PRESENT if 2 * votes > readers else ABSENT
        if agreement == "union":  # where any reader sees a finding, the image is not free of findings
            needed = readers if label == self.card.normal_label else 1
            return PRESENT if votes >= needed else ABSENT
        return PRESENT if votes == readers else ABSENT if votes == 0 else UNCERTAIN

    def _boxes(self, split: str, known: set[str]) -> Mapping[str, list[Box]]:
        path = table_path(self, f"annotations/annotations_{split}.csv")
        boxes: dict[str, list[Box]] = {}
        seen: set[tuple[str, ...]] = set()
        for row in read_csv(path, ("image_id", "class_name", *CORNERS), ("rad_id",)):
            image_id, label = row.cells["image_id"], row.cells["class_name"]
            label = self.card.label_aliases.get(label, label)
            if label == self.card.normal_label:
                continue
            left, top, right, bottom = (number(row.cells[name]) for name in CORNERS)
            reason = box_mistake(left, top, right - left, bottom - top)
            if image_id not in known:
                reason = f"box of an image that is not in image_labels_{split}.csv"
            elif label not in self.card.labels:
                reason = f"box of unknown label '{label}'.{nearest(label, list(self.card.labels))}"
            elif tuple(row.cells.values()) in seen:
                reason = "the same box of the same reader stands twice; the first is kept"
            if reason:
                fix = "Correct the row of the box; the study is kept without it."
                self.problem(f"annotations/{path.name}:{row.line}", reason, fix, image_id)
                continue
            seen.add(tuple(row.cells.values()))
            reader = row.cells["rad_id"] or None
            box = Box(image_id, label, left, top, right - left, bottom - top, reader=reader)
            boxes.setdefault(image_id, []).append(box)
        self.counts[f"{split} boxes"] = sum(len(own) for own in boxes.values())
        return boxes


def _image_id(row: Row) -> str:
    return row.cells["image_id"]
