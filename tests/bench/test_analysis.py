"""Calibration and subgroups of made results with made attributes, and their sections in the report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import made_cells
import numpy as np
import pandas as pd
import pytest
from browser import WIDTHS, open_page, overflow

from medvlp.bench.analysis import calibration_rows, groups_of, subgroup_rows
from medvlp.bench.cells import as_json
from medvlp.bench.report import write_report
from medvlp.bench.report_analysis import MOST_ROWS
from medvlp.bench.results import finished_cells
from medvlp.metrics.calibration import calibration_error, fit_temperature
from medvlp.metrics.subgroups import NOT_KNOWN

SUITE = made_cells.suite()


def store(predictions_of: str = "nih") -> SimpleNamespace:
    """A store that knows of each image its patient's age and sex, and its view; nothing of a site."""
    test = made_cells.predictions(1.0, 0, dataset=predictions_of)
    owner = np.array([int(name[1:]) for name in test.patient_ids])
    frame = pd.DataFrame(
        {
            "image_id": test.sample_ids,
            "age": np.where(owner % 7 == 0, np.nan, 20.0 + owner % 60),
            "sex": np.where(owner % 9 == 0, None, np.where(owner % 2 == 0, "F", "M")),
            "view": np.where(np.arange(len(owner)) % 2 == 0, "PA", "AP"),
            "site": None,
        }
    )
    return SimpleNamespace(samples=lambda: frame)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = made_cells.write_results(tmp_path_factory.mktemp("analysis") / "out", {"good": 2.0, "poor": 0.6}, draws=2)
    cells = finished_cells(root)
    (root / "subgroups.json").write_text(as_json(subgroup_rows(cells, {"nih": store()}, SUITE)))
    (root / "calibration.json").write_text(as_json(calibration_rows(cells, SUITE)))
    return root


def test_subgroups_are_those_of_the_store_at_all_labels(results: Path) -> None:
    rows = subgroup_rows(finished_cells(results), {"nih": store()}, SUITE)
    assert {row["attribute"] for row in rows} == {"age", "sex", "view"}, "nothing is known of sites"
    assert {row["fraction"] for row in rows} == {1.0}
    assert {row["metric"] for row in rows} == {"auroc"}
    assert {row["group"] for row in rows if row["attribute"] == "sex"} == {"F", "M", NOT_KNOWN}
    ages = {row["group"] for row in rows if row["attribute"] == "age"}
    assert ages == {"18 to 39", "40 to 59", "60 to 79", NOT_KNOWN}
    test = made_cells.predictions(1.0, 0)
    facts = store().samples().set_index("image_id").loc[list(test.sample_ids)]
    known = ~np.isnan(test.labels[:, 0])
    for row in rows:
        if (row["encoder"], row["label"], row["attribute"]) == ("good", "Effusion", "view"):
            assert row["n"] == (known & (facts["view"] == row["group"]).to_numpy()).sum()
    assert groups_of(facts, "scanner") == [NOT_KNOWN] * len(facts)


def test_calibration_rows_hold_errors_parts_and_scalings_of_validation(results: Path) -> None:
    rows = calibration_rows(finished_cells(results), SUITE)
    assert len(rows) == 4
    for row in rows:
        cell = next(
            cell
            for cell in finished_cells(results)
            if (cell.record["encoder"], cell.record["fraction"]) == (row["encoder"], 1)
        )
        k = made_cells.LABELS.index(row["label"])
        labels, scores = cell.predictions.labels[:, k], cell.predictions.scores[:, k]
        for name in ("width", "mass"):
            found = row["errors"][f"equal_{name}"]
            assert found["value"] == pytest.approx(calibration_error(labels, scores, binning=name))
            assert found["low"] <= found["high"]
        own = {score["label"]: score for score in cell.result["scores"] if score["metric"] == "ece"}[row["label"]]
        assert own["value"] == pytest.approx(row["errors"]["equal_width"]["value"])
        parts = row["brier"]
        assert parts["value"] == pytest.approx(
            parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within"]
        )
        validation = made_cells.predictions(1.0, 1000, 40)
        expected = fit_temperature(validation.labels[:, k], validation.scores[:, k])
        assert expected is not None
        assert row["temperature"]["slope"] == pytest.approx(expected.slope)
        after = calibration_error(labels, expected.apply(scores), binning="mass")
        assert row["temperature"]["errors"]["equal_mass"]["value"] == pytest.approx(after)


def test_the_report_shows_both_and_the_decision_curves(results: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        assert page.locator("#calibration tbody tr").count() == 4
        rows = page.locator("#subgroup-table tbody tr")
        assert rows.count() == len(subgroup_rows(finished_cells(results), {"nih": store()}, SUITE)) < MOST_ROWS
        page.locator("#subgroups .filters select[name=attribute]").select_option("sex")
        assert page.locator("#subgroup-table tbody tr:visible").count() == 12
        assert "small" in page.locator("#subgroups").inner_text()
        assert page.locator("#curves svg[aria-label^='Decision curves']").count() == 2
        assert page.locator("#curves svg[aria-label^='Reliability curves']").count() == 2
        for width in WIDTHS:
            assert overflow(page, width) <= 0, width
    text = (tmp_path / "report.html").read_text()
    assert "not corrected for the number of gaps" in text
    assert "DeLong" in text
