"""The raw layout of INSPECT; see `data_cards/inspect.md`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_DATE = "20250611"


class InspectLayout(Layout):
    """Volumes in `full/CTPA/` with the five tables beside them; a censored outcome is what no label says."""

    needs = "volumes"
    label_values = (1.0, 0.0, math.nan)

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their ids."""
        mapping: list[list[Any]] = []
        splits: list[list[Any]] = []
        impressions: list[list[Any]] = []
        labels: list[list[Any]] = []
        series: list[list[Any]] = []
        studies = []
        for example in examples:
            assert example.volume is not None
            name = str(10_000_001 + example.number)
            image = f"PE{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            person = str(500_001 + example.patient)
            values = self._values(example)
            text = example.sections.get("impression", "")
            suffix = ".nii.gz" if example.number % 2 else ""
            date = f"2015-0{example.visit + 1}-1{example.patient % 10}"
            mapping.append([name, person, f"{image}{suffix}", f"{date} 10:20:00", f"{date} 11:00:00"])
            splits.append([name, _SPLITS[example.split]])
            impressions.append([name, text])
            labels.append([name, *(_cell(label, value) for label, value in values.items())])
            series.append([name, "CT", example.volume.array.shape[0]])
            self.put_nifti(f"full/CTPA/{image}.nii.gz", example.volume.array, example.volume.affine)
            reference = ImageRef(image, f"full/CTPA/{image}.nii.gz", "CT", facts=VolumeFacts(Intensity.HU))
            report, language = (f"IMPRESSION: {text}", "en") if text else (None, None)
            studies.append(
                Study(name, person, (reference,), report=report, labels=values, language=language,
                      date=date.replace("-", ""), split=example.split)
            )  # fmt: skip
        tables = {
            "study_mapping": (("person_id", "image_id", "procedure_DATETIME", "note_DATETIME"), mapping),
            "splits": (("split",), splits),
            "impressions": (("impressions",), impressions),
            "labels": (self.card.labels, labels),
            "series_metadata": (("Modality", "num_slices"), series),
        }
        for table, (columns, rows) in tables.items():
            self.put_csv(f"full/{table}_{_DATE}.tsv", ("impression_id", *columns), rows, delimiter="\t")
        return sorted(studies, key=lambda study: study.study_id)

    def _values(self, example: Example) -> dict[str, float]:
        """Return the example's labels, or NaN for all: the phantom shows no embolism and has no outcome."""
        if example.labels is None:
            return dict.fromkeys(self.card.labels, math.nan)
        return {label: example.labels[label] for label in self.card.labels}


def _cell(label: str, value: float) -> str:
    """Return `pe_positive` as 1 and 0, the others as words; what is not known is blank there and Censored here."""
    if label == "pe_positive":
        return "" if math.isnan(value) else str(int(value))
    return "Censored" if math.isnan(value) else str(value == 1)
