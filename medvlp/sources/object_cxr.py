"""Object-CXR: foreign objects as rectangles, ellipses and polygons.

Guarantee: every object keeps its shape; rows are matched to images by name, and by order only in the table of the test
folder, where it holds nothing but annotations and exactly one row per image.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping

from medvlp.errors import UserError
from medvlp.sources._checks import box_mistake, name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._files import PICTURES, index_files, require_files
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, Box, ImageRef, Study

FOLDERS = {"train": "train", "val": "dev", "test": "test"}
NAME_COLUMNS = ("image_name", "image_path")
INDEX_COLUMN = "Unnamed:"
"""How pandas calls a column without a name: the number of the row."""
LABEL = "Foreign object"
SHAPES = {"0": "rectangle", "1": "ellipse", "2": "polygon"}


class ObjectCxr(Source):
    """The data set below a root folder; see `data_cards/object_cxr.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image: train, val, test, each in the order of the file names.

        Raises:
            UserError: The table of train or dev is missing, a table has no images, no usable columns or rows that
                cannot be matched, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        images = {split: index_files(self, [f"{folder}/*"], PICTURES) for split, folder in FOLDERS.items()}
        tables = {split: self._rows(split, own) for split, own in images.items()}
        if not any(tables.values()):
            raise UserError("There is no table.", self.root, "Put train.csv and dev.csv into the root folder.")
        found = {f"{split} images": len(rows) for split, rows in tables.items()}
        objects = sum(bool(row.cells["annotation"]) for rows in tables.values() for row in rows.values())
        self.check_counts({"images": sum(found.values()), "images with objects": objects, **found}, "images")
        for split, rows in tables.items():
            yield from self._split(split, rows, images[split])

    def _rows(self, split: str, images: Mapping[str, str]) -> dict[str, Row]:
        """Return image id -> its row; empty where the test folder has no table, or a split has neither."""
        folder = FOLDERS[split]
        path = self.root / f"{folder}.csv"
        if not path.is_file():
            if images and split != "test":
                fix = f"Put {path.name} into the root folder, or remove {folder}/ to do without it."
                raise UserError(
                    f"{path.name} is missing, but there are {len(images):,} images in {folder}/.", path, fix
                )
            self.counts[f"images of {folder}/ without a table, left out"] = len(images)
            return {}
        require_files(self, images, f"{folder}/")
        header = [cell.strip() for cell in next(csv.reader(io.StringIO(read_text(path), newline="")), [])]
        name_column = next((column for column in NAME_COLUMNS if column in header), None)
        if name_column is None:
            return self._by_order(split, header, images)
        rows = read_csv(path, (name_column, "annotation"))
        named = [Row(row.line, {"name": row.cells[name_column], "annotation": row.cells["annotation"]}) for row in rows]
        return unique_rows(self, named, lambda row: _stem(row.cells["name"]), path.name)

    def _by_order(self, split: str, header: list[str], images: Mapping[str, str]) -> dict[str, Row]:
        """Match a table without names to the images in the order of their names; a blank line has no object."""
        path = self.root / f"{FOLDERS[split]}.csv"
        others = [column for column in header if column != "annotation" and not column.startswith(INDEX_COLUMN)]
        if split != "test" or "annotation" not in header or any(others):
            what = f"{path.name} has no column of names ({' or '.join(NAME_COLUMNS)}); it has: {', '.join(header)}."
            fix = "Name the column with the file names image_name. Only test.csv can do without, if it has no other."
            raise UserError(what, path, fix)
        place = header.index("annotation")
        lines = list(csv.reader(io.StringIO(read_text(path), newline="")))[1:]
        if len(lines) != len(images):
            raise UserError(
                f"{path.name} has no column of names and {len(lines)} rows for {len(images)} images: they cannot be "
                "matched.",
                path,
                "Add a column image_name, or download all images.",
            )
        self.counts[f"rows of {path.name} matched to images by order"] = len(lines)
        cells = [line[place].strip() if place < len(line) else "" for line in lines]
        return {
            name: Row(line, {"name": name, "annotation": cell})
            for line, (name, cell) in enumerate(zip(sorted(images), cells, strict=True), 2)
        }

    def _split(self, split: str, rows: Mapping[str, Row], images: Mapping[str, str]) -> Iterator[Study]:
        table = f"{FOLDERS[split]}.csv"
        for name, row in sorted(rows.items()):
            where = f"{table}:{row.line}"
            if name not in images:
                reason = f"row without image: {name} is not in {FOLDERS[split]}/"
                self.problem(where, reason, "Download the image, or remove the row.", name)
                continue
            boxes = tuple(self._boxes(name, row.cells["annotation"], where))
            self.counts["boxes"] += len(boxes)
            yield Study(
                study_id=name,
                patient_id=UNKNOWN_PATIENT,
                images=(ImageRef(name, images[name], self.card.modality),),
                labels={LABEL: PRESENT if row.cells["annotation"] else ABSENT},
                boxes=boxes,
                split=split,
            )
        if rows:
            name_unlisted(self, images, rows, table)

    def _boxes(self, name: str, annotation: str, where: str) -> Iterator[Box]:
        for text in filter(None, map(str.strip, annotation.split(";"))):
            try:
                yield _box(name, text)
            except ValueError as error:
                fix = "Correct the annotation; the image is kept without this object."
                self.problem(where, f"{error}: '{text[:60]}'", fix, name)


def _box(name: str, text: str) -> Box:
    """Return the object `type x1 y1 x2 y2 ...`.

    Raises:
        ValueError: The type is unknown, or the coordinates are wrong.
    """
    kind, *words = text.split()
    shape = SHAPES.get(kind)
    if shape is None:
        raise ValueError(f"object of unknown type {kind}")
    points = [(number(x), number(y)) for x, y in zip(words[::2], words[1::2], strict=False)]
    if len(words) % 2 or (len(points) < 3 if shape == "polygon" else len(points) != 2):
        raise ValueError(f"{shape} with {len(words)} coordinates")
    if shape == "polygon":
        left, top = (min(axis) for axis in zip(*points, strict=True))
        right, bottom = (max(axis) for axis in zip(*points, strict=True))
    else:
        (left, top), (right, bottom) = points
    mistake = box_mistake(left, top, right - left, bottom - top)
    if mistake:
        raise ValueError(mistake)
    corners = tuple(points) if shape == "polygon" else ()
    return Box(name, LABEL, left, top, right - left, bottom - top, shape, corners)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
