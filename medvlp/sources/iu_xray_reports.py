"""Indiana University chest X-ray reports (Open-i XML), without images.

Guarantee: every XML file of the archive or folder becomes a study or a recorded problem, in the order of their numbers;
how they are read says `medvlp.sources._openi`.
"""

from __future__ import annotations

from collections.abc import Iterator

from medvlp.sources._openi import OpeniReport, OpeniSource
from medvlp.types import Study


class IuXrayReports(OpeniSource):
    """Reports of the Indiana University collection: `NLMCXR_reports.tgz`, or a folder with its XML files.

    A study has the sections that are not empty as "INDICATION: ...", "COMPARISON: ...", "FINDINGS: ...", "IMPRESSION:
    ...", a line each, no images and no labels (the MeSH terms are no findings in the sense of the labeler). One
    report a patient is assumed.
    """

    def studies(self) -> Iterator[Study]:
        """Yield a study per report, by number.

        A report without findings and impression is a study, but also a problem. Two files with one id: the first is
        kept if they say the same, none if they contradict.

        Raises:
            UserError: There is no report, the archive is broken, or the archive that bears the official name has
                another number of reports than the card declares.
        """
        self.problems = []
        self._counts = dict.fromkeys(("reports", "images", "empty_findings", "empty_impression", "empty_both"), 0)
        reports = self.reports()
        self._counts["reports"] = self.files_read
        for report in reports:
            self._count(report)
            yield Study(study_id=report.study_id, patient_id=report.study_id, report=report.text)

    def summary(self) -> dict[str, object]:
        """Return the counts found, those that the card declares, and which of them differ."""
        declared = {name: self.card.counts[name] for name in self._counts}
        differ = sorted(name for name, count in declared.items() if self._counts[name] != count)
        return {"found": dict(self._counts), "declared": declared, "mismatch": differ, "whole": not differ}

    def _count(self, report: OpeniReport) -> None:
        self._counts["images"] += len(report.images)
        self._counts["empty_findings"] += "FINDINGS" not in report.sections
        self._counts["empty_impression"] += "IMPRESSION" not in report.sections
        if not {"FINDINGS", "IMPRESSION"} & set(report.sections):
            self._counts["empty_both"] += 1
            reason = "The report has neither findings nor an impression."
            fix = "Nothing to do: it is kept without a report body, and text training leaves it out."
            self.problem(report.path, reason, fix, report.study_id)
