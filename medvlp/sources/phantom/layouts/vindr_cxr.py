"""The raw layout of VinDr-CXR; see `data_cards/vindr_cxr.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, UNCERTAIN, UNKNOWN_PATIENT, Box, ImageRef, Study

_BOX_HEADER = ("image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max")
_READERS = ("R8", "R9", "R10")


class VinDrCxrLayout(Layout):
    """Three readers of the training images, of whom not all see every finding, and a consensus of the test images."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"agreement": ("union", "majority", "all")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies, training images first, by id."""
        labels: dict[str, list[list[Any]]] = {"train": [], "test": []}
        boxes: dict[str, list[list[Any]]] = {"train": [], "test": []}
        studies = [self._study(example, labels, boxes) for example in examples]
        aliases = {label: name for name, label in self.card.label_aliases.items()}
        for split in ("train", "test"):
            columns = (
                self.card.label_columns if split == "train" else [aliases.get(c, c) for c in self.card.label_columns]
            )
            ids = ("image_id", "rad_id") if split == "train" else ("image_id",)
            self.put_csv(f"annotations/image_labels_{split}.csv", (*ids, *columns), labels[split])
            self.put_csv(f"annotations/annotations_{split}.csv", _BOX_HEADER, boxes[split])
        return sorted(studies, key=lambda study: (study.split != "train", study.study_id))

    def _study(self, example: Example, labels: dict[str, list[list[Any]]], boxes: dict[str, list[list[Any]]]) -> Study:
        image_id = hashlib.sha256(f"vindr/{example.number}".encode()).hexdigest()[:32]
        split = "test" if example.split == "test" else "train"
        front = next(image for image in example.images if image.view != "LATERAL")
        path = f"{split}/{image_id}.dicom"
        self.put_bytes(path, radiograph_file(front.pixels, uid_of(image_id), Modality="DX"))
        readings = self._readings(example) if split == "train" else [self._found(example)]
        for reader, found in zip(_READERS, readings, strict=False):
            cells = [int(name in found) for name in self.card.label_columns]
            labels[split].append([image_id, *([reader] if split == "train" else []), *cells])
        own = []
        for place, box in enumerate(front.boxes):
            for label in self.labels_of(box.finding)[:1]:
                who = _READERS[place % 3] if split == "train" else None
                boxes[split].append([image_id, who, label, box.x, box.y, box.x + box.width, box.y + box.height])
                own.append(Box(image_id, label, box.x, box.y, box.width, box.height, reader=who))
        if not own:
            boxes[split].append([image_id, _READERS[0] if split == "train" else None, "No finding", *[None] * 4])
        votes = {name: sum(name in found for found in readings) for name in self.card.label_columns}
        return Study(
            study_id=image_id,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(image_id, path, "DX", "PA"),),
            labels={name: self._agreed(name, count, len(readings)) for name, count in votes.items()},
            boxes=tuple(own),
            values={f"votes {name}": float(count) for name, count in votes.items()} if split == "train" else {},
            split=split,
        )

    def _found(self, example: Example) -> set[str]:
        return {name for name, value in self.labels(example).items() if value == PRESENT}

    def _readings(self, example: Example) -> list[set[str]]:
        """Return what each reader sees: label k of example n is seen by 1 + (n + k) % 3 of them."""
        found = self._found(example) - {"No finding"}
        seen = [
            {name for k, name in enumerate(self.card.labels) if name in found and reader <= (example.number + k) % 3}
            for reader in range(3)
        ]
        return [names or {"No finding"} for names in seen]

    def _agreed(self, name: str, votes: int, readers: int) -> float:
        if votes in (0, readers):
            return PRESENT if votes else ABSENT
        if self.options["agreement"] == "all":
            return UNCERTAIN
        if self.options["agreement"] == "majority":
            return PRESENT if votes == readers - 1 else ABSENT
        return ABSENT if name == "No finding" else PRESENT
