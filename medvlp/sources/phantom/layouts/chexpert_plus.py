"""The raw layout of CheXpert Plus; see `data_cards/chexpert_plus.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts._chexpert import split_of, study_of, view_of
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN, ImageRef, Study

_HEADER = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "section_narrative", "section_clinical_history", "section_history", "section_comparison"),
    *("section_technique", "section_procedure_comments", "section_findings", "section_impression"),
    *("section_end_of_impression", "section_summary", "section_accession_number", "age", "sex", "race", "ethnicity"),
    *("interpreter_needed", "insurance_type", "recent_bmi", "deceased", "split"),
)
_RACES = ("White", "Asian", "Black or African American", "Unknown")


class ChexpertPlusLayout(Layout):
    """The table, labels of one kind of text, and images of one kind; test patients are in `valid`."""

    label_values = (PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED)
    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "images": ("png", "dicom"),
        "labels": ("report", "none"),
    }

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by patient and study."""
        rows: list[list[Any]] = []
        lines: list[str] = []
        studies = [self._study(example, rows, lines) for example in examples]
        self.put_csv("df_chexpert_plus_240401.csv", _HEADER, rows)
        if self.options["labels"] != "none":
            self.put_text(f"chexbert_labels/{self.options['labels']}_fixed.json", "\n".join(lines) + "\n")
        return sorted(studies, key=lambda study: study.study_id)

    def _study(self, example: Example, rows: list[list[Any]], lines: list[str]) -> Study:
        split = "train" if split_of(example) == "train" else "valid"
        patient, study = study_of(example, split)
        labels = self.labels(example)
        nulls = {label: None if value != value else value for label, value in labels.items()}
        images = []
        for place, image in enumerate(example.images):
            view = view_of(place, image)
            stem = f"{split}/{patient}/{study}/{view}"
            path = self._put(stem, image)
            rows.append(self._row(example, image, stem, patient, split))
            lines.append(json.dumps({"path_to_image": f"{stem}.jpg", **nulls}))
            images.append(ImageRef(f"{patient}_{study}_{view}", path, "CR", image.view))
        sections = [
            ("CLINICAL HISTORY", "indication"),
            ("COMPARISON", "comparison"),
            ("FINDINGS", "findings"),
            ("IMPRESSION", "impression"),
        ]
        given = [(name, example.sections[key]) for name, key in sections if example.sections.get(key)]
        return Study(
            study_id=f"{patient}_{study}",
            patient_id=patient,
            images=tuple(images),
            report="\n".join(f"{name}: {text}" for name, text in given),
            language="en",
            labels={} if self.options["labels"] == "none" else labels,
            values={"recent_bmi": 20.5 + example.patient % 10, "patient_report_date_order": example.visit + 1.0},
            attributes={
                "race": _RACES[example.patient % len(_RACES)],
                "ethnicity": "Non-Hispanic/Non-Latino",
                "insurance_type": "Medicare" if example.age > 64 else "Private Insurance",
                "deceased": "No",
            },
            age=float(example.age),
            sex=example.sex,
            split="train" if split == "train" else "val",
        )

    def _row(self, example: Example, image: ExampleImage, stem: str, patient: str, split: str) -> list[Any]:
        texts = {name: example.sections.get(name) for name in ("indication", "comparison", "findings", "impression")}
        whole = "NARRATIVE:\n" + "\n".join(f"{name.upper()}: {text}" for name, text in texts.items())
        lateral = image.view == "LATERAL"
        sections = [None, texts["indication"], None, texts["comparison"], None, None, texts["findings"]]
        return [
            f"{stem}.jpg", f"{stem}.dcm", "Lateral" if lateral else "Frontal", None if lateral else image.view, patient,
            example.visit + 1, whole, *sections, texts["impression"], None, None, None, example.age,
            "Male" if example.sex == "M" else "Female", _RACES[example.patient % len(_RACES)],
            "Non-Hispanic/Non-Latino", None, "Medicare" if example.age > 64 else "Private Insurance",
            20.5 + example.patient % 10, "No", split,
        ]  # fmt: skip

    def _put(self, stem: str, image: ExampleImage) -> str:
        if self.options["images"] == "dicom":
            path = f"DICOM/{stem}.dcm"
            self.put_bytes(path, radiograph_file(image.pixels, uid_of(stem), ViewPosition=image.view))
        else:
            path = f"PNG/{stem}.png"
            self.put_image(path, image.pixels)
        return path
