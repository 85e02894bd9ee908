"""The raw layouts of TBX11K; see `data_cards/tbx11k.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNKNOWN_PATIENT, Box, ImageRef, Study

_CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
_TABLE_TYPES = {"Active tuberculosis": "active_tb", "Latent tuberculosis": "latent_tb"}
_HEADER = ("fname", "image_height", "image_width", "source", "bbox", "target", "tb_type", "image_type")


class Tbx11kLayout(Layout):
    """Frontal images by class, with boxes around consolidation (active) and fibrosis (latent)."""

    editions = {"edition": ("full", "simplified"), "test_images": (False, True)}  # noqa: RUF012

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of the file names."""
        simplified = self.options["edition"] == "simplified"
        studies, coco, rows = [], {split: _empty_coco() for split in ("train", "val")}, []
        for example in examples:
            front = next(image for image in example.images if image.view != "LATERAL")
            study = self._study(example, front)
            hidden = study.split == "test"
            if simplified and hidden:
                continue
            self.put_image(study.images[0].path, front.pixels)
            if hidden:
                studies += [study] if self.options["test_images"] else []
                continue
            studies.append(study)
            rows += _table_rows(study, front)
            _add_to_coco(coco[str(study.split)], example.number + 1, study, front)
        if simplified:
            self.put_csv("data.csv", _HEADER, rows)
        else:
            for split, content in coco.items():
                self.put_text(f"annotations/json/TBX11K_{split}.json", json.dumps(content))
        return sorted(studies, key=lambda study: study.study_id)

    def _study(self, example: Example, image: ExampleImage) -> Study:
        boxes = [(label, box) for box in image.boxes for label in self.labels_of(box.finding)]
        group = "tb" if boxes else "sick" if example.findings else "health"
        name = f"{ {'health': 'h', 'sick': 's', 'tb': 'tb'}[group] }{example.number:04d}"
        path = f"images/{name}.png" if self.options["edition"] == "simplified" else f"imgs/{group}/{name}.png"
        if example.split == "test":
            name = f"x{example.number:04d}"
            hidden = ImageRef(name, f"imgs/test/{name}.png", "CR")
            return Study(name, UNKNOWN_PATIENT, (hidden,), split="test")
        drawn = tuple(Box(name, label, box.x, box.y, box.width, box.height) for label, box in boxes)
        kinds = {box.label for box in drawn}
        labels = {
            "Tuberculosis": PRESENT if group == "tb" else ABSENT,
            "Active tuberculosis": PRESENT if "Active tuberculosis" in kinds else ABSENT,
            "Latent tuberculosis": PRESENT if "Latent tuberculosis" in kinds else ABSENT,
            "Sick but not tuberculosis": PRESENT if group == "sick" else ABSENT,
            "Healthy": PRESENT if group == "health" else ABSENT,
        }
        if example.number % 5 == 4 and group == "tb" and self.options["edition"] == "full":
            drawn = ()
            labels |= {"Active tuberculosis": NOT_MENTIONED, "Latent tuberculosis": NOT_MENTIONED}
        reference = ImageRef(name, path, "CR")
        return Study(name, UNKNOWN_PATIENT, (reference,), labels=labels, boxes=drawn, split=example.split)


def _empty_coco() -> dict[str, list[Any]]:
    categories = [{"id": place, "name": name} for place, name in enumerate(_CATEGORIES, 1)]
    return {"categories": categories, "images": [], "annotations": []}


def _add_to_coco(content: dict[str, list[Any]], number: int, study: Study, image: ExampleImage) -> None:
    height, width = image.pixels.shape
    name = "/".join(study.images[0].path.split("/")[1:])
    content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
    for box in study.boxes:
        category = 1 if box.label == "Active tuberculosis" else 2
        content["annotations"].append(
            {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
             "bbox": [box.x, box.y, box.width, box.height]}
        )  # fmt: skip


def _table_rows(study: Study, image: ExampleImage) -> list[list[object]]:
    """Return one row per box, or one without a box."""
    height, width = image.pixels.shape
    group = "tb" if study.labels["Tuberculosis"] == PRESENT else "no_tb"
    start = [f"{study.study_id}.png", height, width, study.split]
    boxes = [
        [{"xmin": box.x, "ymin": box.y, "width": box.width, "height": box.height}, _TABLE_TYPES[box.label]]
        for box in study.boxes
    ]
    return [[*start, box, group, kind, "unknown"] for box, kind in boxes or [["none", "none"]]]
