"""The raw layout of NIH ChestX-ray14; see `data_cards/nih_chestxray14.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import PRESENT, Box, ImageRef, Study

_HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
)


class NihLayout(Layout):
    """Frontal images in `images/`, the CSV, both official lists and the boxes; validation patients are in `train`."""

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their file names."""
        rows: list[list[Any]] = []
        boxes: list[list[Any]] = []
        studies = []
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for example in examples:
            front = next(image for image in example.images if image.view != "LATERAL")
            study_id = f"{example.patient + 1:08d}_{example.visit:03d}"
            split = "test" if example.split == "test" else "train"
            labels = self.labels(example)
            named = "|".join(name for name in self.card.label_columns if labels[name] == PRESENT)
            height, width = front.pixels.shape
            rows.append(
                [f"{study_id}.png", named, example.visit, example.patient + 1, example.age, example.sex, front.view,
                 width, height, 0.143, 0.143]
            )  # fmt: skip
            lists[split].append(f"{study_id}.png")
            own = [
                Box(study_id, label, box.x, box.y, box.width, box.height)
                for box in front.boxes
                for label in self.labels_of(box.finding)[:1]
            ]
            boxes += [[f"{study_id}.png", box.label, box.x, box.y, box.width, box.height] for box in own]
            self.put_image(f"images/{study_id}.png", front.pixels)
            image = ImageRef(study_id, f"images/{study_id}.png", "CR", front.view)
            studies.append(
                Study(study_id, str(example.patient + 1), (image,), labels=labels, boxes=tuple(own),
                      age=float(example.age), sex=example.sex, split=split)
            )  # fmt: skip
        self.put_text(
            "Data_Entry_2017_v2020.csv",
            "\n".join([",".join(_HEADER), *(",".join(map(str, row)) for row in rows)]) + "\n",
        )
        self._boxes(boxes)
        for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
            self.put_text(name, "\n".join(lists[split]) + "\n")
        return sorted(studies, key=lambda study: study.study_id)

    def _boxes(self, boxes: list[list[Any]]) -> None:
        if not boxes:
            return
        aliases = {label: spelling for spelling, label in self.card.label_aliases.items()}
        lines = [",".join(map(str, [name, aliases.get(label, label), *rest])) for name, label, *rest in boxes]
        self.put_text("BBox_List_2017.csv", "\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *lines]) + "\n")
