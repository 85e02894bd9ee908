"""DeLong against the published fast implementation's values and against the plain structural components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medvlp.metrics.delong import delong_covariance, delong_test


@pytest.mark.parametrize("case", ["plain", "ties", "rare", "strong"])
def test_covariance_z_p_and_interval_equal_the_reference(oracles: Path, case: str) -> None:
    data = np.load(oracles / "metrics" / "classification" / f"delong_{case}.npz")
    areas, covariance = delong_covariance(data["labels"], np.stack([data["scores_a"], data["scores_b"]]))
    np.testing.assert_allclose(areas, data["auc"], atol=1e-12)
    np.testing.assert_allclose(covariance, data["covariance"], rtol=1e-9)
    test = delong_test(data["labels"], data["scores_a"], data["scores_b"])
    assert abs(test.z) == pytest.approx(abs(float(data["z"])), rel=1e-9)
    assert test.p == pytest.approx(float(data["p"][0]), rel=1e-9)
    half = 1.959963984540054 * np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.stack([areas - half, areas + half], axis=1), data["wald_ci95"], atol=1e-4)


def test_identical_scorers_have_no_p(oracles: Path) -> None:
    data = np.load(oracles / "metrics" / "classification" / "delong_identical.npz")
    test = delong_test(data["labels"], data["scores_a"], data["scores_b"])
    assert test.difference == 0
    assert np.isnan(test.p)


def test_covariance_equals_the_structural_components_written_out() -> None:
    rng = np.random.default_rng(1)
    labels = np.r_[np.ones(9), np.zeros(14), np.nan]
    scores = rng.integers(0, 8, (3, 24)).astype(float)
    areas, covariance = delong_covariance(labels, scores)
    kernel = (scores[:, :9, None] > scores[:, None, 9:23]) + 0.5 * (scores[:, :9, None] == scores[:, None, 9:23])
    expected = np.cov(kernel.mean(axis=2)) / 9 + np.cov(kernel.mean(axis=1)) / 14
    np.testing.assert_allclose(areas, kernel.mean(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_one_positive_is_too_few() -> None:
    with pytest.raises(ValueError, match="two patients with each class"):
        delong_covariance(np.array([1.0, 0, 0]), np.zeros((2, 3)))
