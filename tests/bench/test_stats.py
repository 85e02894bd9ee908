"""Scores over seeds and draws: means, components, intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_cells
import numpy as np
import pytest
from scipy import stats as scipy_stats

from medvlp.bench import stats
from medvlp.bench.results import finished_cells
from medvlp.metrics.intervals import interval


def row_of(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cells.write_results(tmp_path_factory.mktemp("stats") / "out", {"good": 2.0}, draws=3, seeds=2)


def test_one_cell_has_its_own_interval_and_its_patients_as_component(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"good": 2.0})
    (cell,) = finished_cells(root)
    for row in stats.aggregate([cell], 0.05):
        own = row_of(cell.result["scores"], metric=row["metric"], label=row["label"])
        assert (row["value"], row["low"], row["high"]) == (own["value"], own["low"], own["high"])
        assert row["sd"] is None
        column = stats.columns_of(cell).index(row["label"])
        spread = np.nanstd(cell.bootstrap[row["metric"]][:, column], ddof=1)
        assert row["components"] == pytest.approx({"patients": spread})


def test_a_mean_over_cells_is_widened_by_draws_and_seeds(results: Path) -> None:
    rows = json.loads((results / "aggregate.json").read_text())
    row = row_of(rows, fraction=0.1, metric="auroc", label="macro")
    cells = [cell for cell in finished_cells(results) if cell.folder.name in row["cells"]]
    assert len(cells) == 6
    assert (row["draws"], row["seeds"]) == (3, 2)
    values = np.array([stats.values_of(cell)["auroc", "macro"] for cell in cells])
    assert row["value"] == pytest.approx(values.mean())
    assert set(row["components"]) == {"patients", "draws", "seeds", "residual"}
    resampled, without = (
        np.mean([getattr(cell, name)["auroc"][:, 2] for cell in cells], axis=0) for name in ("bootstrap", "jackknife")
    )
    patients = interval(values.mean(), resampled, without, 0.05, row["support"])
    assert row["components"]["patients"] == pytest.approx(resampled.std(ddof=1))
    parts = row["components"]
    random = parts["draws"] ** 2 / 3 + parts["seeds"] ** 2 / 2 + parts["residual"] ** 2 / 6
    assert row["low"] < patients.low
    reach = np.sqrt((row["value"] - row["low"]) ** 2 - (row["value"] - patients.low) ** 2)
    assert reach >= scipy_stats.norm.isf(0.025) * np.sqrt(random)
    assert row["high"] <= 1


def test_calibration_errors_lie_in_their_intervals_and_those_of_small_tests_are_not_narrow(results: Path) -> None:
    rows = [row for row in json.loads((results / "aggregate.json").read_text()) if row["metric"] == "ece"]
    rows += [row for cell in finished_cells(results) for row in cell.result["scores"] if row["metric"] == "ece"]
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["high"] - row["low"] > 0.03


def test_a_metric_that_one_cell_lacks_has_no_mean(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"good": 2.0}, seeds=2)
    path = next(root.glob("cells/*/result.json"))
    result = json.loads(path.read_text())
    result["scores"] = [row for row in result["scores"] if row["metric"] != "brier"]
    path.write_text(json.dumps(result))
    rows = [row for row in stats.aggregate(finished_cells(root), 0.05) if row["metric"] == "brier"]
    assert all(np.isnan(row["value"]) and np.isnan(row["low"]) for row in rows)


def test_rows_say_by_which_rule_they_were_made(results: Path) -> None:
    for name in ("aggregate.json", "comparisons.json"):
        assert {row["rule"] for row in json.loads((results / name).read_text())} <= {stats.RULE}
