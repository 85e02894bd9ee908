"""The raw layout of MIMIC-CXR (DICOM); see `data_cards/mimic_cxr.md`."""

from __future__ import annotations

from typing import ClassVar

from medvlp.sources.phantom.examples import ExampleImage
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts._mimic import MimicLayout, MimicTables


class MimicCxrLayout(MimicLayout):
    """DICOM files, the record list, and the tables of the JPG edition beside them."""

    suffix = ".dcm"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "reports": ("full", "sectioned"),
        "split": ("official", "none"),
    }

    def put_radiograph(self, path: str, image: ExampleImage, dicom_id: str) -> None:
        """Write a DICOM file."""
        self.put_bytes(path, radiograph_file(image.pixels, uid_of(dicom_id), ViewPosition=image.view))

    def put_others(self, tables: MimicTables) -> None:
        """Write the record list."""
        self.put_csv("cxr-record-list.csv.gz", ("subject_id", "study_id", "dicom_id", "path"), tables.records)
