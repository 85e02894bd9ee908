"""Decision curves against loops over samples, and their intervals against repeated samples."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.decision import decision_curve, net_benefit

LEVELS = (0.05, 0.1, 0.2, 0.5, 0.8)


def make(samples: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(samples) < 0.3).astype(float)
    scores = np.round(np.clip(0.3 + 0.2 * labels + 0.2 * rng.standard_normal(samples), 0, 1), 1)
    labels[rng.random(samples) < 0.1] = np.nan
    return labels, scores, [f"p{i}" for i in rng.integers(0, 60, samples)]


def by_loop(labels: np.ndarray, scores: np.ndarray, level: float) -> float:
    true = false = count = 0
    for label, score in zip(labels, scores, strict=True):
        if np.isnan(label):
            continue
        count += 1
        true += score >= level and label == 1
        false += score >= level and label == 0
    return true / count - false / count * level / (1 - level)


def test_net_benefit_equals_the_definition() -> None:
    labels, scores, _ = make()
    found = net_benefit(labels, scores, LEVELS)
    assert found == pytest.approx([by_loop(labels, scores, level) for level in LEVELS])
    assert (scores == 0.2).any(), "a score at the threshold is treated"
    assert np.isnan(net_benefit(np.array([np.nan]), np.array([0.4]), LEVELS)).all()


def test_treat_all_and_treat_none_are_the_ends() -> None:
    labels, scores, owners = make()
    curve = decision_curve(labels, scores, Resamples.draw(owners, 50, 0), LEVELS)
    everybody, nobody = (np.full(len(labels), value) for value in (1.0, 0.0))
    assert curve.treat_all == pytest.approx(net_benefit(labels, everybody, LEVELS))
    assert net_benefit(labels, nobody, LEVELS) == pytest.approx(np.zeros(5))
    prevalence = np.nanmean(labels)
    assert curve.treat_all[0] == pytest.approx(prevalence - (1 - prevalence) * 0.05 / 0.95)
    assert np.interp(0, -curve.treat_all, LEVELS) == pytest.approx(prevalence, abs=0.15), (
        "it crosses 0 at the prevalence"
    )


def test_intervals_are_percentiles_over_repeated_samples_and_the_gain_is_paired() -> None:
    labels, scores, owners = make()
    resamples = Resamples.draw(owners, 60, 1)
    curve = decision_curve(labels, scores, resamples, LEVELS, alpha=0.1)
    drawn, gains = [], []
    for weight in resamples.weights():
        again, given = np.repeat(labels, weight), np.repeat(scores, weight)
        model, all_of = (np.array([by_loop(again, s, level) for level in LEVELS]) for s in (given, np.ones(len(given))))
        drawn.append(model)
        gains.append(model - np.where(curve.treat_all > 0, all_of, 0))
    np.testing.assert_allclose(
        [curve.model_low, curve.model_high], np.quantile(drawn, [0.05, 0.95], axis=0), atol=1e-12
    )
    np.testing.assert_allclose([curve.gain_low, curve.gain_high], np.quantile(gains, [0.05, 0.95], axis=0), atol=1e-12)


def test_a_threshold_of_nothing_or_everything_is_refused() -> None:
    labels, scores, owners = make(20)
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            decision_curve(labels, scores, Resamples.draw(owners, 5, 0), [level])
