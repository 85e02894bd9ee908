"""The raw layout of Object-CXR; see `data_cards/object_cxr.md`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

from medvlp.sources.phantom.examples import Example, ExampleBox
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, Box, ImageRef, Study

_FOLDERS = {"train": "train", "val": "dev", "test": "test"}


class ObjectCxrLayout(Layout):
    """JPEG files in three folders, one row each; the places of devices are drawn in the three shapes in turn."""

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by split and file name."""
        rows: dict[str, list[list[str]]] = {split: [] for split in _FOLDERS}
        studies = []
        kinds = cycle("012")
        for example in examples:
            front = next(image for image in example.images if image.view != "LATERAL")
            name = f"{example.number + 1:05d}"
            path = f"{_FOLDERS[example.split]}/{name}.jpg"
            self.put_image(path, front.pixels)
            drawn = [self._object(name, box, next(kinds)) for box in front.boxes if self.labels_of(box.finding)]
            rows[example.split].append([f"{name}.jpg", ";".join(text for text, _ in drawn)])
            labels = {"Foreign object": PRESENT if drawn else ABSENT}
            boxes = tuple(box for _, box in drawn)
            image = ImageRef(name, path, "CR")
            studies.append(Study(name, UNKNOWN_PATIENT, (image,), labels=labels, boxes=boxes, split=example.split))
        self.put_csv("train.csv", ["image_name", "annotation"], rows["train"])
        self.put_csv("dev.csv", ["image_path", "annotation"], rows["val"])
        self.put_csv("test.csv", ["annotation"], [row[1:] for row in rows["test"]])
        order = list(_FOLDERS)
        return sorted(studies, key=lambda study: (order.index(str(study.split)), study.study_id))

    @staticmethod
    def _object(name: str, box: ExampleBox, kind: str) -> tuple[str, Box]:
        """Return an object as the table writes it and as a record; polygons are diamonds within the box."""
        left, top, right, bottom = (int(value) for value in (box.x, box.y, box.x + box.width, box.y + box.height))
        middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
        shape = {"0": "rectangle", "1": "ellipse", "2": "polygon"}[kind]
        points: tuple[tuple[int, int], ...] = ((left, top), (right, bottom))
        if shape == "polygon":
            points = ((middle_x, top), (right, middle_y), (middle_x, bottom), (left, middle_y))
        text = " ".join([kind, *(str(value) for point in points for value in point)])
        corners = tuple((float(x), float(y)) for x, y in points) if shape == "polygon" else ()
        record = Box(name, "Foreign object", left, top, right - left, bottom - top, shape, corners)
        return text, record
