"""The raw layout of CC-CCII; see `data_cards/cc_ccii.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._slices import grey_slices
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, ImageRef, Intensity, Study, VolumeFacts

_METADATA = (
    *("patient_id", "scan_id", "Age", "Sex(Male1/Female2)", "Critical_illness", "Liver_function", "Lung_function"),
    "Progression (Days)",
)


class CcCciiLayout(Layout):
    """Scans as folders of PNG or JPEG slices; every second patient has a row of metadata."""

    needs = "volumes"

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by class, patient and scan."""
        table: list[list[Any]] = []
        metadata: list[list[Any]] = []
        lesions: list[list[str]] = []
        studies = []
        for example in examples:
            assert example.volume is not None
            label, patient, scan = self._label(example), str(example.patient + 1), str(1001 + example.number)
            name, folder = f"{label}_{patient}_{scan}", f"{label}/{patient}/{scan}"
            suffix = "jpg" if example.patient % 2 else "png"
            slices = grey_slices(example.volume)
            files = tuple(f"{folder}/{place:04d}.{suffix}" for place in range(len(slices)))
            for path, pixels in zip(files, slices, strict=True):
                self.put_image(path, pixels)
            table.append([f"{label}-{example.patient + 1}.zip", label, patient, scan, len(slices)])
            known = example.patient % 2 == 0
            if known:
                metadata.append([patient, scan, example.age, "MF".index(example.sex) + 1, 0, 2, "", 3.5])
            marked = ["0001", "0002"] if label == "NCP" else []
            lesions += [[f"{folder}/{place}.{suffix}"] for place in marked]
            values = {"Critical_illness": 0.0, "Liver_function": 2.0, "Progression (Days)": 3.5} if known else {}
            studies.append(
                Study(
                    study_id=name,
                    patient_id=patient,
                    images=(ImageRef(name, folder, "CT", files=files, facts=VolumeFacts(Intensity.STORED)),),
                    labels={own: PRESENT if own == label else ABSENT for own in self.card.labels},
                    values=values | ({"lesion_slices": 2.0} if marked else {}),
                    attributes={"lesion_slices": "0001 0002"} if marked else {},
                    age=float(example.age) if known else None,
                    sex=example.sex if known else None,
                )
            )
        self.put_csv("unzip_filenames.csv", ("zip_file", "label", "patient_id", "scan_id", "n_slice"), table)
        self.put_csv("metadata.csv", _METADATA, metadata)
        self.put_csv("lesions_slices.csv", ("imgpath",), lesions)
        return sorted(studies, key=lambda study: (study.study_id.split("_")[0], example_order(study)))

    def _label(self, example: Example) -> str:
        labels = self.labels(example)
        return next(label for label in ("NCP", "CP", "Normal") if labels[label] == PRESENT)


def example_order(study: Study) -> tuple[int, int]:
    """Return patient and scan of a study as numbers."""
    _, patient, scan = study.study_id.split("_")
    return int(patient), int(scan)
