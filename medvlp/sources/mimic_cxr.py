"""MIMIC-CXR: DICOM files, free-text reports, and the official tables of splits and labels.

Guarantee: every image of `cxr-record-list` is in a study or a recorded problem; no DICOM header is read.
"""

from __future__ import annotations

from medvlp.sources._csv import Row
from medvlp.sources._mimic import IDS, MimicSource

METADATA = "mimic-cxr-2.0.0-metadata"


class MimicCxr(MimicSource):
    """The data set below a root folder; see `data_cards/mimic_cxr.md`."""

    suffix = ".dcm"
    place_of_tables = "Copy it there from MIMIC-CXR-JPG"

    def records(self) -> tuple[str, list[Row]]:
        """Return the official list of images."""
        return self.table_rows("cxr-record-list", (*IDS, "path"))

    def metadata(self) -> list[Row]:
        """Return views and times, where the user has the table of the JPG edition."""
        if not self.has_table(METADATA):
            return []
        return self.table_rows(METADATA, ("dicom_id", "ViewPosition"), ("StudyDate", "StudyTime"))[1]
