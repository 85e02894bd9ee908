"""Intervals: the formula written out, what few patients can say, and coverage by simulation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.calibration import calibration_error, resampled_calibration_error
from medvlp.metrics.classification import ClassificationScoring
from medvlp.metrics.intervals import Influence, interval, percentile_interval
from medvlp.types import Predictions


def load_coverage() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_percentiles_leave_out_and_count_missing_values() -> None:
    found = percentile_interval(np.r_[np.arange(101.0), np.nan, np.nan], alpha=0.1)
    assert (found.low, found.high, found.left_out) == (5.0, 95.0, 2)
    assert np.isnan(percentile_interval(np.array([1.0, np.nan])).low)


def test_bounds_are_those_of_the_formula_written_out() -> None:
    rng = np.random.default_rng(3)
    data = rng.exponential(size=25)
    resampled = rng.choice(data, (999, 25)).mean(axis=1)
    without = np.array([np.delete(data, i).mean() for i in range(25)])
    found = interval(data.mean(), resampled, without, 0.1)

    pull = [without.mean() - value for value in without]
    variance = sum(d**2 for d in pull)
    acceleration = sum(d**3 for d in pull) / (6 * variance**1.5)
    freedom = 2 * variance**2 / (sum(d**4 for d in pull) - variance**2 / 25)
    z0 = stats.norm.ppf(sum(value < data.mean() for value in resampled) / 999)
    for bound, side in ((found.low, -1), (found.high, 1)):
        reach = z0 + side * stats.t.ppf(0.95, freedom)
        share = stats.norm.cdf(z0 + reach / (1 - acceleration * reach))
        assert bound == pytest.approx(np.quantile(resampled, share))
    plain = percentile_interval(resampled, 0.1)
    assert found.high > plain.high, "the mean of a right-skewed sample may be far too low"
    assert found.low > plain.low - 0.1


def test_the_jackknife_gives_the_textbook_error_and_freedom_of_a_mean() -> None:
    data = np.random.default_rng(0).standard_normal(400)
    found = Influence.of(np.array([np.delete(data, i).mean() for i in range(400)]))
    assert found.error == pytest.approx(data.std(ddof=1) / 20)
    assert found.freedom == pytest.approx(400, rel=0.25)
    assert abs(found.acceleration) < 0.01


def test_a_score_that_hangs_on_few_positives_has_their_degrees_of_freedom() -> None:
    rng = np.random.default_rng(1)
    labels = np.r_[np.ones(8), np.zeros(300)][:, None]
    scores = 1 / (1 + np.exp(-(labels + rng.standard_normal(labels.shape))))
    names = [str(i) for i in range(308)]
    predictions = Predictions(names, names, ["x"], labels, scores)
    without = bootstrap_values(predictions, Resamples.jackknife(names), metrics=["auroc"])["auroc"][:, 0]
    assert 2 < Influence.of(without).freedom < 16


@pytest.mark.parametrize("positives", [1, 2])
def test_one_positive_patient_gives_no_interval(positives: int) -> None:
    rng = np.random.default_rng(2)
    labels = np.r_[np.ones(positives), np.zeros(30)][:, None]
    scores = rng.random(labels.shape)
    names = [str(i) for i in range(len(labels))]
    predictions = Predictions(names, names, ["x"], labels, scores)
    resampled, without = (
        bootstrap_values(predictions, each, metrics=["auroc"])["auroc"][:, 0]
        for each in (Resamples.draw(names, 500, 0), Resamples.jackknife(names))
    )
    found = interval(0.5, resampled, without)
    assert np.isnan(found.low) == (positives == 1)
    assert np.isnan(found.high) == (positives == 1)
    assert found.left_out == np.isnan(resampled).sum() > 0


def test_a_score_without_a_mistake_is_not_called_certain() -> None:
    labels = np.r_[np.ones(10), np.zeros(40)][:, None]
    names = [str(i) for i in range(50)]
    predictions = Predictions(names, names, ["x"], labels, labels * 0.8 + 0.1)
    support = ClassificationScoring().support(predictions, {})
    assert {metric: carried[0] for metric, carried in support.items()} == {
        **dict.fromkeys(("auroc", "average_precision", "f1", "sensitivity"), 10),
        "specificity": 40,
        **dict.fromkeys(("accuracy", "ece", "brier"), 50),
    }
    values = [
        bootstrap_values(predictions, each, metrics=["auroc"])["auroc"][:, 0]
        for each in (Resamples.draw(names, 200, 0), Resamples.jackknife(names))
    ]
    found = interval(1.0, *values, support=int(support["auroc"][0]))
    exact = stats.binomtest(10, 10).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, 1.0))
    none = interval(0.0, np.zeros(9), np.zeros(5), support=10)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - exact.low))
    same = interval(0.5, np.full(9, 0.5), np.full(5, 0.5), support=10)
    assert (same.low, same.high) == (0.5, 0.5), "constant scores order nothing, whoever is drawn"


def test_extreme_acceleration_stops_at_the_last_resample() -> None:
    resampled = np.linspace(0, 1, 101)
    without = np.r_[np.full(30, 0.5), 0.1]  # one patient carries nearly all of it
    found = interval(0.5, resampled, without)
    assert 0 <= found.low < 0.5 < found.high <= 1


def calibrated(rng: np.random.Generator, count: int, slope: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores; the true log odds are slope times those of the scores, plus shift."""
    odds = rng.normal(-0.5, 1.2, count)
    chance = 1 / (1 + np.exp(-slope * odds - shift))
    return (rng.random(count) < chance).astype(float), 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize(
    "laws",
    [[(1, 0)], [(0.8, 0)], [(1, -0.6)], [(0.2, -1)], [(1, 0)] * 5, [(1, 0)] * 3 + [(1, -1)] * 2],
    ids=["calibrated", "nearly", "shifted", "flat", "mean of calibrated", "mean of some"],
)
def test_intervals_of_calibration_errors_hold_the_true_one(count: int, laws: list[tuple[float, float]]) -> None:
    many = np.random.default_rng(0)
    truth = np.mean([0 if law == (1, 0) else calibration_error(*calibrated(many, 400_000, *law)) for law in laws])
    names = [f"{i:04d}" for i in range(count)]
    drawn = Resamples.draw(names, 300, 0), Resamples.jackknife(names)
    held = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, count])
        sets = [calibrated(rng, count, *law) for law in laws]
        value = float(np.mean([calibration_error(*one) for one in sets]))
        resampled, without = (
            np.mean([resampled_calibration_error(*one, each) for one in sets], axis=0) for each in drawn
        )
        found = interval(value, resampled, without, raised=True)
        assert 0 <= found.low <= value <= found.high <= 1
        held += found.low <= truth <= found.high
    assert held / 60 >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auroc", "mean"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    coverage = load_coverage()
    wanted = [scenario for scenario in coverage.SCENARIOS if scenario.required and scenario.kind == kind]
    assert wanted
    for scenario in wanted:
        found = coverage.simulate(scenario, draws=2000, resamples=1000, seed=0)
        assert abs(found.coverage - 0.95) <= 0.015, (scenario, found)
