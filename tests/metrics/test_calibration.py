"""Calibration against torchmetrics' reference values, loops written out, and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.calibration import (
    Scaling,
    bins_of,
    brier_parts,
    calibration_error,
    fit_platt,
    fit_temperature,
    logits,
    reliability_curve,
    resampled_calibration_error,
)


def make(samples: int = 300, seed: int = 0, slope: float = 2.5, shift: float = -0.7) -> tuple[np.ndarray, np.ndarray]:
    """Labels with NaN, and scores whose logits are `slope` times too steep and moved."""
    rng = np.random.default_rng(seed)
    at = rng.normal(0, 1.3, samples)
    labels = (rng.random(samples) < special.expit(at)).astype(float)
    labels[rng.random(samples) < 0.1] = np.nan
    return labels, special.expit(slope * at + shift)


def test_equal_width_errors_equal_the_reference(oracles: Path) -> None:
    folder = oracles / "metrics" / "classification"
    values = json.loads((folder / "meta.json").read_text())["values"]
    files = [file for file in sorted(folder.glob("binary_*.npz")) if "ece10_l1" in values[file.stem]]
    assert files
    for file in files:
        data = np.load(file)
        name = "probabilities" if "probabilities" in data else "scores"
        scores = data[name][:, 1] if data[name].ndim == 2 else data[name]
        for bins in (10, 15):
            found = calibration_error(data["labels"].astype(float), scores, bins)
            assert found == pytest.approx(values[file.stem][f"ece{bins}_l1"], abs=1e-6), file.stem


def test_equal_mass_bins_hold_as_many_samples_and_keep_ties_together() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(150)
    which = bins_of(scores, 15, "mass")
    np.testing.assert_array_equal(np.bincount(which), 10)
    order = np.argsort(scores)
    assert (np.diff(which[order]) >= 0).all()
    tied = np.round(scores, 1)
    assert all(len(set(bins_of(tied, 15, "mass")[tied == value])) == 1 for value in np.unique(tied))
    assert bins_of(np.full(7, 0.3), 15, "mass").tolist() == [7] * 7
    assert len(bins_of(np.zeros(0), 15, "mass")) == 0


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_error_and_brier_parts_equal_loops_over_bins(binning: str) -> None:
    labels, scores = make()
    known = ~np.isnan(labels)
    y, p = labels[known], scores[known]
    which = bins_of(p, 15, binning)
    error = reliability = resolution = within = 0.0
    for i in set(which.tolist()):
        inside = which == i
        share, mean, gap = inside.mean(), p[inside].mean(), p[inside].mean() - y[inside].mean()
        error += share * abs(gap)
        reliability += share * gap**2
        resolution += share * (y[inside].mean() - y.mean()) ** 2
        within += sum(
            (v - mean) ** 2 - 2 * (v - mean) * (w - y[inside].mean()) for v, w in zip(p[inside], y[inside], strict=True)
        )
    assert calibration_error(labels, scores, binning=binning) == pytest.approx(error)
    found = brier_parts(labels, scores, binning=binning)
    assert found.reliability == pytest.approx(reliability)
    assert found.resolution == pytest.approx(resolution)
    assert found.uncertainty == pytest.approx(y.mean() * (1 - y.mean()))
    assert found.within == pytest.approx(within / len(y))
    assert found.brier == pytest.approx(brier_score_loss(y, p))
    assert found.brier == pytest.approx(found.reliability - found.resolution + found.uncertainty + found.within)


def test_without_samples_there_is_nothing() -> None:
    nothing = np.full(3, np.nan), np.full(3, 0.5)
    assert np.isnan(calibration_error(*nothing))
    assert np.isnan(brier_parts(*nothing).brier)
    assert fit_platt(*nothing) is fit_temperature(*nothing) is None
    curve = reliability_curve(*nothing, Resamples.draw(["a", "b", "c"], 10, 0))
    assert len(curve.score) == 0


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_the_error_in_a_resample_is_that_of_repeated_samples_in_the_bins_of_all(binning: str) -> None:
    labels, scores = make(120)
    owners = [f"p{i}" for i in np.random.default_rng(1).integers(0, 40, 120)]
    resamples = Resamples.draw(owners, 15, 0)
    found = resampled_calibration_error(labels, scores, resamples, binning=binning)
    known = ~np.isnan(labels)
    which = bins_of(scores[known], 15, binning)
    for value, weight in zip(found, resamples.weights()[:, known], strict=True):
        gaps = [abs((weight * (scores - labels)[known])[which == i].sum()) for i in set(which.tolist())]
        assert value == pytest.approx(sum(gaps) / weight.sum())


def test_the_reliability_curve_has_the_intervals_of_its_shares() -> None:
    labels, scores = make(4000, slope=1.0, shift=0.0)
    owners = [str(i) for i in range(4000)]
    curve = reliability_curve(labels, scores, Resamples.draw(owners, 1000, 0), bins=10)
    assert curve.size.sum() == (~np.isnan(labels)).sum()
    inside = (curve.low <= curve.score) & (curve.score <= curve.high)
    assert inside.mean() >= 0.8, "the scores are the probabilities"
    half = 1.96 * np.sqrt(curve.share * (1 - curve.share) / curve.size)
    wide = curve.size > 100
    np.testing.assert_allclose((curve.high - curve.low)[wide], 2 * half[wide], rtol=0.15)
    gap = float((np.abs(curve.score - curve.share) * curve.size).sum() / curve.size.sum())
    assert gap == pytest.approx(calibration_error(labels, scores, 10))


def test_a_bin_without_a_positive_is_not_called_certain() -> None:
    labels, scores = np.r_[np.zeros(12), np.ones(5)], np.r_[np.full(12, 0.11), np.full(5, 0.9)]
    curve = reliability_curve(labels, scores, Resamples.draw([str(i) for i in range(17)], 200, 0))
    exact = stats.binomtest(0, 12).proportion_ci(0.95, "exact")
    assert (curve.share[0], curve.low[0], curve.high[0]) == pytest.approx((0, 0, exact.high))
    assert curve.low[1] == pytest.approx(stats.binomtest(5, 5).proportion_ci(0.95, "exact").low)


def test_temperature_and_platt_find_what_was_done_to_the_logits() -> None:
    labels, scores = make(20_000, slope=2.5, shift=0.0)
    found = fit_temperature(labels, scores)
    assert found is not None
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert calibration_error(labels, found.apply(scores)) < 0.02 < calibration_error(labels, scores)
    labels, scores = make(20_000, slope=2.5, shift=-0.7)
    platt = fit_platt(labels, scores)
    assert platt is not None
    assert (platt.slope, platt.intercept) == pytest.approx((0.4, 0.28), abs=0.03)


def test_platt_equals_scikit_learn_on_softened_targets() -> None:
    labels, scores = make(200)
    known = ~np.isnan(labels)
    y, x = labels[known], logits(scores[known])[:, None]
    positives, negatives = (y == 1).sum(), (y == 0).sum()
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A soft target is a positive and a negative sample with the weights t and 1 - t.
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    model.fit(np.r_[x, x], np.r_[np.ones(len(y)), np.zeros(len(y))], np.r_[targets, 1 - targets])
    found = fit_platt(labels, scores)
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)


def test_temperature_is_the_best_of_a_fine_grid() -> None:
    labels, scores = make(200)
    known = ~np.isnan(labels)
    grid = np.geomspace(0.05, 5, 4001)
    probability = special.expit(grid[:, None] * logits(scores[known]))
    losses = -np.log(np.where(labels[known] == 1, probability, 1 - probability)).mean(axis=1)
    found = fit_temperature(labels, scores)
    assert found is not None
    assert found.slope == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


def test_scaling_keeps_the_order_and_stays_finite_where_classes_are_separable() -> None:
    labels, scores = np.r_[np.zeros(20), np.ones(20)], np.r_[np.linspace(0, 0.4, 20), np.linspace(0.6, 1, 20)]
    for fitted in (fit_platt(labels, scores), fit_temperature(labels, scores)):
        assert fitted is not None
        assert np.isfinite([fitted.slope, fitted.intercept]).all()
        assert 0 < fitted.slope <= 100
        after = fitted.apply(scores)
        assert ((after >= 0) & (after <= 1)).all()
        assert roc_auc_score(labels, after) == 1
    for fit in (fit_platt, fit_temperature):
        assert fit(1 - labels, scores) is None, "scores that stand the wrong way round are not turned"
    labels, scores = make()
    known = ~np.isnan(labels)
    after = Scaling(0.3, 1.2).apply(scores)
    assert roc_auc_score(labels[known], after[known]) == roc_auc_score(labels[known], scores[known])


def test_one_class_gives_no_scaling() -> None:
    assert fit_platt(np.ones(5), np.linspace(0.1, 0.9, 5)) is None
    assert fit_temperature(np.zeros(5), np.linspace(0.1, 0.9, 5)) is None
