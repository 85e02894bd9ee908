"""The raw layout of CheXpert, small edition; see `data_cards/chexpert.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._chexpert import split_of, study_of, view_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN, ImageRef, Study

_FOLDER = "CheXpert-v1.0-small"


class ChexpertLayout(Layout):
    """Training and validation tables with demographics, test labels without; test studies have one frontal image."""

    label_values = (PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED)
    editions: ClassVar[dict[str, tuple[object, ...]]] = {"labels": ("chexpert", "chexbert", "visualchexbert")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by patient and study."""
        rows: dict[str, list[list[Any]]] = {"train": [], "valid": [], "test": []}
        studies = [self._study(example, rows) for example in examples]
        header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *self.card.labels)
        names = self.card.adapter["tables"]
        train = names["train"][self.options["labels"]]
        self.put_csv(f"{_FOLDER}/{train}", header, rows["train"])
        self.put_csv(f"{_FOLDER}/{names['valid'][0]}", header, rows["valid"])
        self.put_csv(f"{_FOLDER}/{names['test'][0]}", ("Path", *self.card.labels), rows["test"])
        return sorted(studies, key=lambda study: study.study_id)

    def _study(self, example: Example, rows: dict[str, list[list[Any]]]) -> Study:
        split = split_of(example)
        patient, study = study_of(example, split)
        labels = self.labels(example)
        cells = [None if value != value else value for value in labels.values()]
        images = []
        for place, image in enumerate(example.images[:1] if split == "test" else example.images):
            view, lateral = view_of(place, image), image.view == "LATERAL"
            path = f"{_FOLDER}/{split}/{patient}/{study}/{view}.jpg"
            self.put_image(path, image.pixels)
            facts = [
                "Male" if example.sex == "M" else "Female",
                example.age,
                "Lateral" if lateral else "Frontal",
                None if lateral else image.view,
            ]
            rows[split].append([path, *([] if split == "test" else facts), *cells])
            shown = None if split == "test" else image.view
            images.append(ImageRef(f"{patient}_{study}_{view}", path, "CR", shown))
        known = split != "test"
        return Study(
            study_id=f"{patient}_{study}",
            patient_id=patient,
            images=tuple(images),
            labels=labels,
            age=float(example.age) if known else None,
            sex=example.sex if known else None,
            split=example.split,
        )
