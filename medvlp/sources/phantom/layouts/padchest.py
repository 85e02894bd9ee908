"""The raw layout of PadChest; see `data_cards/padchest.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import PRESENT, ImageRef, Study

_HEADER = (
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM"),
    *("PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
    *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
    *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
)
_YEAR = 2014
_CUIS = ("C0025552", "C4273001")
_PLACES = ("loc shoulder", "loc right")


class PadChestLayout(Layout):
    """16-bit PNG files in numbered folders and the table; the words of its Spanish reports are English."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"language": ("es", "en")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by patient and study."""
        rows: list[list[Any]] = []
        translations: list[list[Any]] = []
        studies = [self._study(example, rows, translations) for example in examples]
        rows = [[number, *row] for number, row in enumerate(rows)]
        self.put_csv("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", _HEADER, rows)
        if self.options["language"] == "en":
            self.put_csv("reports_en.csv", ("ReportID", "Report"), translations)
        return sorted(studies, key=lambda study: (study.patient_id, study.study_id))

    def _study(self, example: Example, rows: list[list[Any]], translations: list[list[Any]]) -> Study:
        patient, study_id = f"{10**20 + example.patient}", f"{2168401113669640 * 10**8 + example.number}"
        labels = self.labels(example)
        named = [name for name, value in labels.items() if value == PRESENT]
        spanish = " . ".join(text.lower().rstrip(".") for text in example.sections.values())
        method = "Physician" if example.number % 4 == 0 else "RNN_model"
        images = []
        for place, image in enumerate(example.images):
            stem, folder = f"{study_id}_{example.number:02d}-{place:03d}", f"{example.number % 3}"
            self.put_image(f"{folder}/{stem}.png", image.pixels.astype(np.uint16) * 257)
            height, width = image.pixels.shape
            projection = {"LATERAL": "L"}.get(image.view, image.view)
            rows.append(
                [f"{stem}.png", folder, f"{_YEAR}0102", study_id, patient, f"{_YEAR - example.age}.0", example.sex,
                 "LATERAL" if projection == "L" else "POSTEROANTERIOR", projection, "Manual review of DICOM fields",
                 "No", "CR", "ImagingDynamicsCompanyLtd", "MONOCHROME2", 0, None, None, 16, 32768, 65535, height, width,
                 None, None, None, None, None, 4_000_000 + example.number, spanish, method,
                 repr([f"{name} " for name in named]), repr([*_PLACES, ""]), repr([[*named, "loc right"], ["normal"]]),
                 f"['{_CUIS[0]}' '{_CUIS[1]}'\n '' 'C0016542']", "['C0524470']"]
            )  # fmt: skip
            images.append(ImageRef(stem, f"{folder}/{stem}.png", "CR", image.view))
        english = " ".join(example.sections.values())
        translations.append([4_000_000 + example.number, english])
        return Study(
            study_id=study_id,
            patient_id=patient,
            images=tuple(images),
            report=english if self.options["language"] == "en" else spanish,
            language=str(self.options["language"]),
            labels=labels,
            attributes={
                "method_label": method,
                "localizations": "|".join(sorted(_PLACES)),
                "label_cuis": "|".join((*_CUIS, "C0016542")),
                "localization_cuis": "C0524470",
                "manufacturer": "ImagingDynamicsCompanyLtd",
                "photometric_interpretation": "MONOCHROME2",
            },
            age=float(example.age),
            sex=example.sex,
            date=f"{_YEAR}0102",
        )
