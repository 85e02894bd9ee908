"""The raw layout of the IU reports alone: a folder of Open-i XML; see `data_cards/iu_xray_reports.md`."""

from __future__ import annotations

from collections.abc import Iterable

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._openi import joined_sections, openi_xml
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import Study


class IuXrayReportsLayout(Layout):
    """One file for each examination, which names no image."""

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the reports; return their studies by number."""
        studies = []
        for example in examples:
            study_id = f"CXR{example.number + 1}"
            self.put_text(f"ecgen-radiology/{example.number + 1}.xml", openi_xml(study_id, example))
            studies.append(Study(study_id=study_id, patient_id=study_id, report=joined_sections(example)))
        return studies
