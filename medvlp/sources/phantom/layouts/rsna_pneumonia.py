"""The raw layout of the RSNA Pneumonia Detection Challenge; see `data_cards/rsna_pneumonia.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, Box, ImageRef, Study

_CLASSES = {"L_a": "Normal", "L_b": "No Lung Opacity / Not Normal", "L_c": "Lung Opacity"}


class RsnaLayout(Layout):
    """One DICOM file per frontal image; test examinations go to the folder without labels."""

    editions = {"labels": ("kaggle", "adjudicated"), "test_images": (False, True)}  # noqa: RUF012

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their ids."""
        rows: list[list[Any]] = []
        classes: list[list[Any]] = []
        mapping: list[dict[str, str]] = []
        annotations: list[dict[str, Any]] = []
        studies = []
        for example in examples:
            study, class_name = self._study(example)
            in_test = example.split == "test"
            self._image(example, study)
            cells: list[list[Any]] = [[box.x, box.y, box.width, box.height, 1] for box in study.boxes] or [
                [None] * 4 + [0]
            ]
            if not in_test:
                rows += [[study.study_id, *cell] for cell in cells]
                classes += [[study.study_id, class_name] for _ in cells]
            mapping.append(
                {"subset_img_id": study.study_id, "img_id": study.attributes["nih_image"],
                 "StudyInstanceUID": uid_of(study.study_id), "SOPInstanceUID": uid_of(study.study_id, "sop")}
            )  # fmt: skip
            annotations += self._annotations(study, class_name)
            studies.append(study)
        self.put_csv("stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], rows)
        self.put_csv("stage_2_detailed_class_info.csv", ["patientId", "class"], classes)
        self.put_text("pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping))
        groups = [
            {"name": "Reader 1", "labels": [{"id": "L_z", "name": "Lung Opacity"}]},
            {"name": "Calculated", "labels": [{"id": key, "name": name} for key, name in _CLASSES.items()]},
        ]
        content = {"labelGroups": groups, "datasets": [{"annotations": annotations}]}
        self.put_text("pneumonia-challenge-annotations-adjudicated-kaggle_2018.json", json.dumps(content))
        tests = self.options["test_images"]
        wanted = [study for study in studies if tests or "test" not in study.images[0].path]
        return sorted((self._without_hidden(study) for study in wanted), key=lambda study: study.study_id)

    def _study(self, example: Example) -> tuple[Study, str]:
        study_id = str(UUID(int=(example.number * 0x9E3779B97F4A7C15) % 2**128))
        front = next(image for image in example.images if image.view != "LATERAL")
        boxes = tuple(
            Box(study_id, "Pneumonia", box.x, box.y, box.width, box.height)
            for box in front.boxes
            if "Pneumonia" in self.labels_of(box.finding)
        )
        other = "Normal" if not example.findings else "No Lung Opacity / Not Normal"
        class_name = "Lung Opacity" if boxes else other
        folder = "stage_2_test_images" if example.split == "test" else "stage_2_train_images"
        return (
            Study(
                study_id=study_id,
                patient_id=str(example.patient + 1),
                images=(ImageRef(study_id, f"{folder}/{study_id}.dcm", "CR"),),
                labels={
                    "Pneumonia": PRESENT if boxes else ABSENT,
                    "Normal": PRESENT if class_name == "Normal" else ABSENT,
                },
                boxes=boxes,
                attributes={"class": class_name, "nih_image": f"{example.patient + 1:08d}_{example.visit:03d}.png"},
            ),
            class_name,
        )

    def _image(self, example: Example, study: Study) -> None:
        front = next(image for image in example.images if image.view != "LATERAL")
        data = radiograph_file(
            front.pixels, uid_of(study.study_id, "sop"), PatientID=study.study_id, ViewPosition=front.view
        )
        self.put_bytes(study.images[0].path, data)

    def _annotations(self, study: Study, class_name: str) -> list[dict[str, Any]]:
        """Return one annotation per box, or one of the whole study; a single reader's opinion comes with each."""
        own = next(key for key, name in _CLASSES.items() if name == class_name)
        places: list[Any] = [{"x": box.x, "y": box.y, "width": box.width, "height": box.height} for box in study.boxes]
        uid = uid_of(study.study_id)
        made = [{"StudyInstanceUID": uid, "labelId": own, "data": place} for place in places or [None]]
        return [*made, {"StudyInstanceUID": uid, "labelId": "L_z", "data": {"x": 1, "y": 1, "width": 2, "height": 2}}]

    def _without_hidden(self, study: Study) -> Study:
        """Return the study without what the edition does not tell of an image in the test folder."""
        if "train" in study.images[0].path or self.options["labels"] == "adjudicated":
            return study
        attributes = {"nih_image": study.attributes["nih_image"]}
        return Study(study.study_id, study.patient_id, study.images, attributes=attributes)
