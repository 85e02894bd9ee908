"""The raw layout of LUNA16; see `data_cards/luna16.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example, ExampleVolume
from medvlp.sources.phantom.layouts._metaimage import metaimage
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, ImageRef, Intensity, Lesion, Mask, Study, VolumeFacts

_POINT = ("seriesuid", "coordX", "coordY", "coordZ")
_TABLE_OF_PATIENTS = "CSVFILES/patients.csv"


class Luna16Layout(Layout):
    """Scans spread over the ten subsets, nodules and candidates in LPS, masks with 3 and 4 for lungs, 5 for trachea."""

    needs = "volumes"
    editions: ClassVar = {"candidates": ("none", "v2"), "patients": ("", _TABLE_OF_PATIENTS)}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their series UIDs."""
        annotations: list[list[Any]] = []
        candidates: list[list[Any]] = []
        patients: list[list[str]] = []
        studies = []
        for example in examples:
            volume = example.volume
            assert volume is not None
            name = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100_000 + example.number}"
            patient = f"LIDC-IDRI-{example.patient + 1:04d}"
            fold = f"subset{example.number % 10}"
            points = [(name, -r, -a, s) for lesion in volume.lesions for r, a, s in [lesion.centre_mm]]
            annotations += [[*at, lesion.diameter_mm] for at, lesion in zip(points, volume.lesions, strict=True)]
            other = (name, -1.5, 2.25, float(volume.affine[2, 3]))
            candidates += [[*other, 0], *([*at, 1] for at in points)]
            patients.append([name, patient])
            self._files(name, fold, volume)
            lesions = [Lesion(name, "nodule", lesion.centre_mm, lesion.diameter_mm) for lesion in volume.lesions]
            if self.options["candidates"] == "v2":
                lesions.append(Lesion(name, "candidate_other", (1.5, -2.25, other[3])))
                lesions += [Lesion(name, "candidate_nodule", lesion.centre_mm) for lesion in volume.lesions]
            mask = f"seg-lungs-LUNA16/{name}.mhd"
            studies.append(
                Study(
                    study_id=name,
                    patient_id=patient if self.options["patients"] else UNKNOWN_PATIENT,
                    images=(ImageRef(name, f"{fold}/{name}.mhd", "CT", facts=VolumeFacts(Intensity.HU)),),
                    labels={"nodule": PRESENT if volume.lesions else ABSENT},
                    lesions=tuple(lesions),
                    masks=(Mask(name, "lungs", mask, (3, 4)), Mask(name, "trachea", mask, (5,))),
                    subsets=(fold,),
                )
            )
        if not annotations:
            annotations = [["1.3.6.1.4.1.14519.5.2.1.6279.6001.999999", 0.0, 0.0, 0.0, 4.5]]  # of a scan not there
        self.put_csv("CSVFILES/annotations.csv", (*_POINT, "diameter_mm"), annotations)
        self.put_csv("CSVFILES/candidates_V2.csv", (*_POINT, "class"), candidates)
        self.put_csv(_TABLE_OF_PATIENTS, ("seriesuid", "patient_id"), patients)
        return sorted(studies, key=lambda study: study.study_id)

    def _files(self, name: str, fold: str, volume: ExampleVolume) -> None:
        coded = np.zeros(volume.array.shape, np.uint8)
        for value, structure in volume.names.items():
            code = 5 if structure == "trachea" else 3 + value % 2
            coded[np.asarray(volume.structures) == value] = code
        for path, array in ((f"{fold}/{name}", volume.array), (f"seg-lungs-LUNA16/{name}", coded)):
            header, data = metaimage(array, volume.affine, f"{name}.raw")
            self.put_bytes(f"{path}.mhd", header)
            self.put_bytes(f"{path}.raw", data)
