"""Texts of the Indiana University reports, as the reference values name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.sources.iu_xray_reports import IuXrayReports


@pytest.fixture(scope="session")
def folder(oracles: Path) -> Path:
    return oracles / "metrics" / "reports"


@pytest.fixture(scope="session")
def iu_texts(test_data: Path) -> dict[str, str]:
    """Findings and impression of each report, with one blank between."""
    reports = IuXrayReports(test_data / "iu_xray_reports" / "NLMCXR_reports.tgz").reports()
    return {
        report.study_id: f"{report.sections.get('FINDINGS', '')} {report.sections.get('IMPRESSION', '')}"
        for report in reports
    }
