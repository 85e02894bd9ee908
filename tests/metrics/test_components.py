"""Variance components against statsmodels, the analysis of variance by hand, and simulations with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medvlp.metrics.comparison import normal_p, with_components
from medvlp.metrics.components import Components, Design
from medvlp.metrics.intervals import Interval

NO_PATIENTS = np.zeros((15, 15))


def balanced(draws: int = 5, seeds: int = 3) -> tuple[list[int], list[int]]:
    return np.repeat(np.arange(draws), seeds).tolist(), np.tile(np.arange(seeds), draws).tolist()


def test_a_balanced_design_equals_restricted_maximum_likelihood_of_statsmodels() -> None:
    import pandas as pd
    import statsmodels.api as sm

    draws, seeds = balanced()
    rng = np.random.default_rng(3)
    values = rng.normal(0, 2, 5)[draws] + rng.normal(0, 1.5, 3)[seeds] + rng.normal(0, 0.5, 15)
    found = Design({"draws": draws, "seeds": seeds}, np.full(15, 1 / 15)).components(values, NO_PATIENTS)
    frame = pd.DataFrame({"value": values, "draw": draws, "seed": seeds, "all": 1})
    parts = {"draws": "0 + C(draw)", "seeds": "0 + C(seed)"}
    fitted = sm.MixedLM.from_formula("value ~ 1", groups="all", vc_formula=parts, data=frame).fit()
    expected = dict(zip(fitted.model.exog_vc.names, fitted.vcomp, strict=True))
    assert found.variances["draws"] == pytest.approx(expected["draws"], rel=1e-3)
    assert found.variances["seeds"] == pytest.approx(expected["seeds"], rel=1e-3)
    assert found.variances["residual"] == pytest.approx(fitted.scale, rel=1e-3)
    assert found.random == pytest.approx(float(fitted.bse["Intercept"]) ** 2, rel=1e-3)


def test_a_balanced_design_equals_the_analysis_of_variance_by_hand() -> None:
    draws, seeds = balanced(4, 3)
    values = np.random.default_rng(0).normal(size=12) + np.array([0, 1.0, 3, 7])[draws] + np.array([0, 2.0, 5])[seeds]
    table = values.reshape(4, 3)
    grand = table.mean()
    of_draws = 3 * sum((row.mean() - grand) ** 2 for row in table) / 3
    of_seeds = 4 * sum((row.mean() - grand) ** 2 for row in table.T) / 2
    rest = (
        sum((table[i, j] - table[i].mean() - table[:, j].mean() + grand) ** 2 for i in range(4) for j in range(3)) / 6
    )
    found = Design({"draws": draws, "seeds": seeds}, np.full(12, 1 / 12)).components(values, NO_PATIENTS[:12, :12])
    assert found.variances == pytest.approx(
        {"draws": (of_draws - rest) / 3, "seeds": (of_seeds - rest) / 4, "residual": rest}
    )


def test_an_unbalanced_design_is_unbiased_and_patients_are_not_counted_again() -> None:
    draws = [0, 0, 0, 1, 1, 2, 3, 3, 3, 4]
    seeds = [0, 1, 2, 0, 1, 0, 0, 1, 2, 2]
    weights = np.full(10, 0.1)
    rng = np.random.default_rng(5)
    factor = rng.normal(0, 0.4, (10, 10))
    patients = factor @ factor.T
    design = Design({"draws": draws, "seeds": seeds}, weights)
    truth = {"draws": 4.0, "seeds": 1.0, "residual": 0.25}
    forms, rounds = [], 4000
    for _ in range(rounds):
        values = rng.normal(0, 2, 5)[draws] + rng.normal(0, 1, 3)[seeds] + rng.normal(0, 0.5, 10)
        values += factor @ rng.standard_normal(10)
        # The equations themselves, before a negative component is set to 0: their solution is unbiased.
        quadratic = [values @ form @ values - np.vdot(form, patients) for form in design._forms]
        forms.append(np.linalg.solve(design._expectations, quadratic))
    error = np.std(forms, axis=0) / np.sqrt(rounds)
    assert np.abs(np.mean(forms, axis=0) - list(truth.values())) == pytest.approx(0, abs=float(4 * error.max()))
    assert (np.abs(np.mean(forms, axis=0) - list(truth.values())) < 4 * error).all()


def test_what_a_design_cannot_tell_is_not_named() -> None:
    assert Design({"draws": [0], "seeds": [0]}, np.ones(1)).names == []
    assert Design({"draws": [0, 1, 2], "seeds": [0, 0, 0]}, np.full(3, 1 / 3)).names == ["draws"]
    assert Design({"draws": [0, 0, 0], "seeds": [0, 1, 2]}, np.full(3, 1 / 3)).names == ["seeds"]
    assert Design({"draws": [0, 1, 2], "seeds": [0, 1, 2]}, np.full(3, 1 / 3)).names == ["draws"]
    single = Design({"draws": [0], "seeds": [0]}, np.ones(1)).components(np.array([0.7]), np.array([[0.01]]))
    assert (single.patients, single.random, single.variances) == (0.01, 0.0, {})


def test_draws_that_agree_better_than_patients_let_them_have_no_variance() -> None:
    design = Design({"draws": [0, 1, 2], "seeds": [0, 0, 0]}, np.full(3, 1 / 3))
    found = design.components(np.array([0.70, 0.71, 0.69]), np.eye(3) * 0.01)
    assert found.variances == {"draws": 0.0}
    assert found.random == 0
    bounds = Interval(0.6, 0.75)
    assert found.widen(0.7, bounds, 0.05) == bounds


def test_the_interval_of_a_mean_over_draws_alone_is_that_of_student() -> None:
    values = np.array([0.5, 0.6, 0.7, 0.9])
    design = Design({"draws": [0, 1, 2, 3], "seeds": [0] * 4}, np.full(4, 1 / 4))
    found = design.components(values, np.zeros((4, 4)))
    mean = float(values.mean())
    bounds = found.widen(mean, Interval(mean, mean), 0.05)
    expected = stats.t.interval(0.95, 3, mean, stats.sem(values))
    assert (bounds.low, bounds.high) == pytest.approx(expected)
    assert found.freedom == pytest.approx(3)
    p = with_components(mean - 0.4, normal_p(mean - 0.4, 1e-9), found.random, found.freedom)
    assert p == pytest.approx(stats.ttest_1samp(values, 0.4).pvalue, rel=0.01)


def test_the_p_over_draws_is_where_the_interval_ends_at_nothing() -> None:
    found = Components({"draws": 0.02}, patients=0.01, random=0.004, freedom=4)
    difference = 0.3
    p = with_components(difference, normal_p(difference, 0.1), found.random, found.freedom)
    half = stats.norm.isf(p / 2) * 0.1
    bounds = found.widen(difference, Interval(difference - half, difference + half), p)
    assert bounds.low == pytest.approx(0, abs=1e-9)
    assert p > normal_p(difference, 0.1)
    assert with_components(0.3, 0.01, 0.0, float("inf")) == 0.01
    assert with_components(0.0, 1.0, 0.1, 3) == 1.0
    assert np.isnan(with_components(0.3, float("nan"), 0.1, 3))


def test_components_of_a_difference_leave_out_what_both_encoders_share() -> None:
    encoders = ["a"] * 4 + ["b"] * 4
    draws = [0, 1, 2, 3] * 2
    own = [(encoder, draw) for encoder, draw in zip(encoders, draws, strict=True)]
    weights = np.array([0.25] * 4 + [-0.25] * 4)
    design = Design({"draws": draws, "draws of an encoder": own}, weights, encoders)
    shared = np.array([0.0, 5.0, -3.0, 9.0])
    noise = np.random.default_rng(1).normal(0, 0.1, 8)
    values = np.tile(shared, 2) + noise
    found = design.components(values, np.zeros((8, 8)))
    differences = (values[:4] - values[4:]).reshape(4)
    assert found.random == pytest.approx(float(stats.sem(differences)) ** 2)
    assert found.freedom == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("draws", [3, 5])
def test_intervals_over_draws_hold_the_truth(draws: int) -> None:
    # Draws decide everything here, which an interval from resampled draws misses in one case of five.
    rng = np.random.default_rng(draws)
    design = Design({"draws": range(draws), "seeds": [0] * draws}, np.full(draws, 1 / draws))
    held, rounds = 0, 2000
    for _ in range(rounds):
        values = rng.normal(0, 1, draws) + rng.normal(0, 0.1)
        found = design.components(values, np.full((draws, draws), 0.01))
        half = 1.96 * found.patients**0.5
        bounds = found.widen(values.mean(), Interval(values.mean() - half, values.mean() + half), 0.05)
        held += bounds.low <= 0 <= bounds.high
    assert held / rounds == pytest.approx(0.95, abs=0.015)
