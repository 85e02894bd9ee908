"""Paired comparisons of made encoders: which test, which p, which cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_cells
import numpy as np
import pytest
from scipy import stats as scipy_stats

from medvlp.bench.cells import PREDICTIONS, STAMP
from medvlp.bench.comparisons import BOOTSTRAP, DELONG, PERMUTATION, WITH_COMPONENTS, Rules, compare, compare_two
from medvlp.bench.results import finished_cells
from medvlp.bench.sides import Side
from medvlp.bench.stats import values_of
from medvlp.metrics.comparison import adjusted, bootstrap_p, normal_p
from medvlp.metrics.delong import delong_test
from medvlp.types import Predictions

STRENGTHS = {"good": 2.0, "same": 2.0, "poor": 0.6}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cells.write_results(tmp_path_factory.mktemp("pairs") / "out", STRENGTHS)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "out"
    return made_cells.write_results(folder, {"good": 2.0, "poor": 0.6}, draws=3, seeds=2)


def rows_of(root: Path, **wanted: Any) -> list[dict[str, Any]]:
    rows = json.loads((root / "comparisons.json").read_text())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_auroc_is_tested_by_delong_over_patients(results: Path) -> None:
    cells = {cell.record["encoder"]: cell for cell in finished_cells(results)}
    a, b = (cells[name].predictions for name in ("good", "poor"))
    for k, label in enumerate(made_cells.LABELS):
        (row,) = rows_of(results, a="good", b="poor", label=label)
        expected = delong_test(a.labels[:, k], a.scores[:, k], b.scores[:, k], patient_ids=a.patient_ids)
        assert row["p"] == pytest.approx(expected.p)
        assert row["difference"] == pytest.approx(expected.difference)
        assert row["test"] == DELONG
        assert row["low"] == pytest.approx(expected.low, abs=0.05)
    (macro,) = rows_of(results, a="good", b="poor", label="macro")
    assert macro["p"] < min(row["p"] for row in rows_of(results, a="good", b="poor", family="label"))
    differences = cells["good"].bootstrap["auroc"][:, 2] - cells["poor"].bootstrap["auroc"][:, 2]
    z, other = (scipy_stats.norm.isf(p / 2) for p in (macro["p"], bootstrap_p(macro["difference"], differences)))
    assert z == pytest.approx(other, rel=0.15), "DeLong of the macro mean and the bootstrap see the same error"


def test_other_metrics_are_tested_by_permutation(results: Path) -> None:
    rows = compare_two(finished_cells(results), "good", "poor", Rules(permutations=300), "f1")
    assert {row["test"] for row in rows} == {PERMUTATION}
    assert {row["metric"] for row in rows} == {"f1"}
    values = {cell.record["encoder"]: values_of(cell) for cell in finished_cells(results)}
    for row in rows:
        a, b = values["good"]["f1", row["label"]], values["poor"]["f1", row["label"]]
        assert row["difference"] == pytest.approx(a - b)
        assert row["low"] < row["difference"] < row["high"]
    assert rows[-1]["label"] == "macro"
    assert rows[-1]["p"] < 0.01


def test_a_difference_of_calibration_errors_has_the_bounds_of_both(results: Path, tmp_path: Path) -> None:
    rows = compare_two(finished_cells(results), "good", "poor", Rules(permutations=100), "ece")
    cells = {cell.record["encoder"]: cell for cell in finished_cells(results)}
    for row in rows:
        a, b = (
            next(r for r in cells[name].result["scores"] if (r["metric"], r["label"]) == ("ece", row["label"]))
            for name in ("good", "poor")
        )
        assert row["low"] == pytest.approx(row["difference"] - np.hypot(a["value"] - a["low"], b["high"] - b["value"]))
        assert row["high"] == pytest.approx(row["difference"] + np.hypot(a["high"] - a["value"], b["value"] - b["low"]))
    for name in ("one", "two"):
        made_cells.write_cell(tmp_path / "out", name, made_cells.predictions(2.0, 5))
    for row in compare_two(finished_cells(tmp_path / "out"), "one", "two", Rules(permutations=100), "ece"):
        assert (row["difference"], row["p"], row["low"], row["high"]) == (0, 1, 0, 0)


def test_alike_encoders_are_not_told_apart_and_the_same_one_has_p_one(results: Path, tmp_path: Path) -> None:
    (row,) = rows_of(results, a="good", b="same", label="macro")
    assert row["p"] > 0.05
    assert row["low"] < 0 < row["high"]
    for name in ("one", "two"):
        made_cells.write_cell(tmp_path / "out", name, made_cells.predictions(2.0, 5))
    for metric in (None, "f1"):
        for row in compare_two(finished_cells(tmp_path / "out"), "one", "two", Rules(permutations=100), metric):
            assert (row["difference"], row["p"], row["low"], row["high"]) == (0, 1, 0, 0)


def test_p_values_are_corrected_within_their_family_as_the_suite_says(results: Path) -> None:
    for correction in ("holm", "benjamini_hochberg"):
        rows = compare(finished_cells(results), list(STRENGTHS), Rules(correction=correction))
        for family, count in (("macro", 3), ("label", 6)):
            same = [row for row in rows if row["family"] == family]
            assert [row["comparisons"] for row in same] == [count] * count
            assert [row["correction"] for row in same] == [correction] * count
            assert [row["p_adjusted"] for row in same] == adjusted([row["p"] for row in same], correction)


def test_over_draws_and_seeds_their_variance_is_added(several: Path) -> None:
    (row,) = rows_of(several, fraction=0.1, label="macro")
    assert row["test"] == DELONG + WITH_COMPONENTS
    assert (row["draws"], row["seeds"]) == (3, [2, 2])
    cells = [cell for cell in finished_cells(several) if cell.record["fraction"] == 0.1]
    by = {
        name: np.array([values_of(cell)["auroc", "macro"] for cell in cells if cell.record["encoder"] == name])
        for name in ("good", "poor")
    }
    assert row["difference"] == pytest.approx(by["good"].mean() - by["poor"].mean())
    sides = [[Side(cell, "auroc") for cell in cells if cell.record["encoder"] == name] for name in ("good", "poor")]
    read = [[side.read for side in own] for own in sides]
    influence = np.subtract(*(np.mean([one.influence["macro"] for one in own if one], axis=0) for own in read))
    over_patients = normal_p(row["difference"], float(np.linalg.norm(influence)))
    assert row["p"] > over_patients, "three draws cannot say what the patients say"
    half = (row["high"] - row["low"]) / 2
    plain = np.mean([cell.bootstrap["auroc"][:, 2] for cell in cells if cell.record["encoder"] == "good"], axis=0)
    other = np.mean([cell.bootstrap["auroc"][:, 2] for cell in cells if cell.record["encoder"] == "poor"], axis=0)
    assert half > 1.96 * (plain - other).std()


def test_permutation_over_several_cells_is_that_of_their_mean(several: Path) -> None:
    cells = [cell for cell in finished_cells(several) if cell.record["fraction"] == 0.1]
    rows = compare_two(cells, "good", "poor", Rules(permutations=200), "accuracy")
    assert {row["test"] for row in rows} == {PERMUTATION + WITH_COMPONENTS}
    mean = {
        name: np.mean([values_of(cell)["accuracy", "macro"] for cell in cells if cell.record["encoder"] == name])
        for name in ("good", "poor")
    }
    assert rows[-1]["difference"] == pytest.approx(mean["good"] - mean["poor"])


def test_only_draws_that_both_have_are_compared(tmp_path: Path) -> None:
    root = tmp_path / "out"
    for draw in range(3):
        made_cells.write_cell(root, "a", made_cells.predictions(2.0, draw), fraction=0.1, draw=draw)
    for draw in (1, 2, 3):
        made_cells.write_cell(root, "b", made_cells.predictions(1.0, 50 + draw), fraction=0.1, draw=draw)
    cells = finished_cells(root)
    row = compare_two(cells, "a", "b", Rules())[-1]
    assert row["draws"] == 2
    values = {(cell.record["encoder"], cell.record["draw"]): values_of(cell)["auroc", "macro"] for cell in cells}
    assert row["difference"] == pytest.approx(np.mean([values["a", d] - values["b", d] for d in (1, 2)]))


def test_other_samples_are_compared_by_the_bootstrap(tmp_path: Path) -> None:
    root, full = tmp_path / "out", made_cells.predictions(2.0, 1)
    kept = slice(0, len(full.sample_ids) - 7)
    fewer = Predictions(
        full.sample_ids[kept], full.patient_ids[kept], full.label_names, full.labels[kept], full.scores[kept]
    )
    made_cells.write_cell(root, "a", full)
    made_cells.write_cell(root, "b", fewer)
    rows = compare_two(finished_cells(root), "a", "b", Rules())
    assert {row["test"] for row in rows} == {BOOTSTRAP}
    assert all(row["p"] > 0.05 for row in rows), "patients of both are drawn alike, so that the same scores stay paired"


def test_a_perfect_encoder_against_a_constant_one_is_not_called_certain(tmp_path: Path) -> None:
    root, names = tmp_path / "out", [f"p{i}" for i in range(12)]
    labels = (np.arange(12) < 6).astype(float)[:, None]
    for name, scores in (("perfect", 0.1 + 0.8 * labels), ("constant", np.full((12, 1), 0.5))):
        made_cells.write_cell(root, name, Predictions(names, names, ["Effusion"], labels, scores))
    row = compare_two(finished_cells(root), "perfect", "constant", Rules())[0]
    assert row["difference"] == 0.5
    # Clopper and Pearson for six of six, and a difference of at least that against 0.5.
    assert row["low"] == pytest.approx(0.5 - (1 - 0.025 ** (1 / 6)))
    assert row["high"] == 0.5
    assert row["test"] == PERMUTATION
    assert 1e-4 < row["p"] < 0.05


def test_predictions_without_a_stamp_are_compared_by_the_bootstrap(tmp_path: Path) -> None:
    import pandas as pd

    root = made_cells.write_results(tmp_path / "out", {"good": 2.0, "poor": 0.6})
    for path in root.glob(f"cells/*/{PREDICTIONS}"):
        frame = pd.read_parquet(path)
        del frame.attrs[STAMP]
        frame.to_parquet(path, index=False)
    assert {row["test"] for row in compare_two(finished_cells(root), "good", "poor", Rules())} == {BOOTSTRAP}
