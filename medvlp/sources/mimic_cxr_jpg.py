"""MIMIC-CXR-JPG: JPEG files with tables of metadata, splits and labels, and reports where the user has them.

Guarantee: every image of the table of metadata is in a study or a recorded problem.
"""

from __future__ import annotations

from functools import cached_property

from medvlp.sources._csv import Row
from medvlp.sources._mimic import IDS, MimicSource


class MimicCxrJpg(MimicSource):
    """The data set below a root folder; see `data_cards/mimic_cxr_jpg.md`."""

    suffix = ".jpg"
    place_of_tables = "Give the folder that holds it beside files/ (wget makes physionet.org/files/mimic-cxr-jpg/2.1.0)"

    @cached_property
    def _metadata(self) -> tuple[str, list[Row]]:
        return self.table_rows("mimic-cxr-2.0.0-metadata", (*IDS, "ViewPosition"), ("StudyDate", "StudyTime"))

    def records(self) -> tuple[str, list[Row]]:
        """Return the table of metadata, which lists every image."""
        return self._metadata

    def metadata(self) -> list[Row]:
        """Return the same table."""
        return self._metadata[1]
