"""The layout of the phantom as CT; see `data_cards/phantom_ct.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from medvlp.sources._label_maps import label_map_masks, values_of
from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.findings import NAMES
from medvlp.sources.phantom.layouts._label_maps import label_map
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Intensity, Lesion, Study, VolumeFacts


class PhantomCtLayout(Layout):
    """One table, a folder of volumes, and two of label maps, with and without the findings in them."""

    needs = "organs"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {"masks": ("all", "organs")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their numbers."""
        self.put_text("phantom_ct.json", json.dumps({"format": self.card.adapter["format"]}))
        written = [self._study(example) for example in examples]
        self.put_text("studies.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row, _ in written))
        return [study for _, study in written]

    def _study(self, example: Example) -> tuple[dict[str, Any], Study]:
        """Write the volumes of an example; return its row and what is read back."""
        assert example.volume is not None
        name, volume = f"s{example.number:06d}", example.volume
        organs = self.card.structures[: self.card.adapter["organs"]]
        whole = label_map(volume, self.card.structures)
        both = whole.copy()
        if volume.findings is not None:
            for place, finding in enumerate(NAMES, 1):
                if finding in self.card.structures:
                    both[volume.findings == place] = 1 + self.card.structures.index(finding)
        whole[whole > len(organs)] = 0
        self.put_nifti(f"volumes/{name}.nii.gz", volume.array, volume.affine)
        self.put_nifti(f"labels/{name}.nii.gz", both.astype(np.uint8), volume.affine)
        self.put_nifti(f"organs/{name}.nii.gz", whole.astype(np.uint8), volume.affine)
        lesions = tuple(Lesion(name, lesion.finding, lesion.centre_mm, lesion.diameter_mm) for lesion in volume.lesions)
        sections = example.sections
        text = "\n".join(f"{heading.upper()}: {text}" for heading, text in sections.items())
        only = self.options["masks"] == "organs"
        named = organs if only else self.card.structures
        study = Study(
            study_id=name,
            patient_id=f"p{example.patient:06d}",
            images=(
                ImageRef(
                    name, f"volumes/{name}.nii.gz", "CT", facts=VolumeFacts(Intensity.HU, label_values=values_of(named))
                ),
            ),
            report=sections["findings"] if set(sections) == {"findings"} else text,
            labels=self.labels(example),
            lesions=lesions,
            masks=label_map_masks(name, f"{'organs' if only else 'labels'}/{name}.nii.gz", named),
            language=self.card.language,
            age=float(example.age),
            sex=example.sex,
            split=example.split,
        )
        row = {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "split": study.split,
            "age": study.age,
            "sex": study.sex,
            "report": study.report,
            "labels": study.labels,
            "lesions": [asdict(lesion) for lesion in lesions],
        }
        return row, study
