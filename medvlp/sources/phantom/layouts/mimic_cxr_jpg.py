"""The raw layout of MIMIC-CXR-JPG; see `data_cards/mimic_cxr_jpg.md`."""

from __future__ import annotations

from typing import ClassVar

from medvlp.sources.phantom.examples import ExampleImage
from medvlp.sources.phantom.layouts._mimic import MimicLayout


class MimicCxrJpgLayout(MimicLayout):
    """JPEG files, with the reports of the DICOM edition beside them."""

    suffix = ".jpg"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "labels": ("chexpert", "negbio"),
        "test_labels": ("automatic", "radiologist"),
    }

    def put_radiograph(self, path: str, image: ExampleImage, dicom_id: str) -> None:
        """Write a JPEG file."""
        self.put_image(path, image.pixels)
