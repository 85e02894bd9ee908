"""Pictures of a user: with a table, or in folders of their classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.findings import NAMES
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study

_NORMAL = "normal"


class ImageFolderLayout(Layout):
    """With a table: studies of several pictures, patients, reports, labels. Without: the frontal ones, by class."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"table": (None, "list.csv"), "modality": ("OT", "CR")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the folder; return its studies by path."""
        made = list(examples)
        studies = self._with_table(made) if self.options["table"] else self._by_class(made)
        return sorted(studies, key=lambda study: study.images[0].path)

    def _by_class(self, examples: list[Example]) -> list[Study]:
        classes = [min(example.findings, default=_NORMAL) for example in examples]
        studies = []
        for example, name in zip(examples, classes, strict=True):
            path = f"{example.split}/{name}/{example.number:03d}.png"
            self.put_image(path, example.images[0].pixels)
            image = ImageRef(path, path, str(self.options["modality"]))
            labels = {other: float(other == name) for other in sorted(set(classes))}
            studies.append(Study(path, UNKNOWN_PATIENT, (image,), labels=labels, split=example.split))
        return studies

    def _with_table(self, examples: list[Example]) -> list[Study]:
        rows: list[list[object]] = []
        studies = []
        for example in examples:
            study, patient, report = f"S{example.number:03d}", f"P{example.patient}", example.sections.get("findings")
            labels = {
                name: float(name in example.findings) if (example.number + place) % 4 else float("nan")
                for place, name in enumerate(NAMES)
            }
            cells = ["" if value != value else int(value) for value in labels.values()]
            images = []
            for place, image in enumerate(example.images):
                name = f"{example.number:03d}_{place}"
                path = f"pictures/{example.number % 2}/{name}.jpg"
                self.put_image(path, image.pixels)
                rows.append([name, study, patient, image.view, example.split, report, example.age, example.sex, *cells])
                images.append(ImageRef(path, path, str(self.options["modality"]), image.view))
            studies.append(
                Study(study, patient, tuple(images), report=report or None, labels=labels, age=float(example.age),
                      sex=example.sex, split=example.split)
            )  # fmt: skip
        header = ("Image", "study_id", "Patient ID", "View", "split", "text", "age", "sex", *NAMES)
        self.put_csv(str(self.options["table"]), header, rows)
        return studies
