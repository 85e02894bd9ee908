"""The vectorised bootstrap against a loop over scikit-learn on the same multiplicities; Holm by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from medvlp.metrics.bootstrap import Resamples, bootstrap_values, interval
from medvlp.metrics.classification import METRICS, ece, score_predictions
from medvlp.metrics.comparison import holm, paired_difference
from medvlp.types import Predictions

THRESHOLDS = {"common": 0.55, "rare": 0.7, "unknown": 0.4}


def make_predictions(samples: int = 150, patients: int = 40, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = (rng.random((samples, 3)) < [0.5, 0.03, 0.3]).astype(float)
    labels[rng.random(samples) < 0.2, 2] = np.nan
    scores = np.round(np.clip(0.5 + 0.2 * np.nan_to_num(labels) + 0.25 * rng.standard_normal((samples, 3)), 0, 1), 1)
    owners = [f"p{i}" for i in rng.integers(0, patients, samples)]
    return Predictions([f"s{i}" for i in range(samples)], owners, list(THRESHOLDS), labels, scores)


def repeated(predictions: Predictions, weight: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.repeat(predictions.labels[:, k], weight), np.repeat(predictions.scores[:, k], weight)
    return labels[~np.isnan(labels)], scores[~np.isnan(labels)]


def test_every_metric_equals_a_loop_over_scikit_learn_on_the_same_multiplicities() -> None:
    predictions = make_predictions()
    resamples = Resamples.draw(predictions.patient_ids, 60, seed=3)
    values = bootstrap_values(predictions, resamples, THRESHOLDS)
    weights = resamples.weights()
    missing = 0
    for k, name in enumerate(predictions.label_names):
        for r, weight in enumerate(weights):
            labels, scores = repeated(predictions, weight, k)
            called = scores >= THRESHOLDS[name]
            expected = {
                "accuracy": sk.accuracy_score(labels, called),
                "brier": np.mean((labels - scores) ** 2),
                "ece": ece(labels, scores),
            }
            if len(np.unique(labels)) == 2:
                expected |= {
                    "auroc": sk.roc_auc_score(labels, scores),
                    "average_precision": sk.average_precision_score(labels, scores),
                    "f1": sk.f1_score(labels, called),
                    "sensitivity": sk.recall_score(labels, called),
                    "specificity": sk.recall_score(1 - labels, ~called),
                }
            else:
                missing += 1
                assert np.isnan(values["auroc"][r, k])
            for metric, value in expected.items():
                assert values[metric][r, k] == pytest.approx(value, abs=1e-12), (metric, name, r)
    assert missing, "the case must hold resamples without a class"
    np.testing.assert_allclose(values["auroc"][:, -1], values["auroc"][:, :3].mean(axis=1))


def test_the_unit_weights_give_the_plain_scores() -> None:
    predictions = make_predictions()
    drawn = Resamples.draw(predictions.patient_ids, 10, seed=0)
    once = Resamples(np.ones((1, drawn.patients), dtype=np.int32), drawn.patient_of_sample)
    values = bootstrap_values(predictions, once, THRESHOLDS)
    names = [*predictions.label_names, "macro"]
    for score in score_predictions(predictions, THRESHOLDS):
        assert values[score.metric][0, names.index(score.label)] == pytest.approx(score.value, abs=1e-12)
    assert set(values) == set(METRICS)


def test_multiplicities_belong_to_patients_and_do_not_depend_on_the_order_of_samples() -> None:
    predictions = make_predictions()
    owners = np.array(predictions.patient_ids)
    resamples = Resamples.draw(predictions.patient_ids, 25, seed=1)
    weights = resamples.weights()
    for patient in np.unique(owners):
        assert (weights[:, owners == patient] == weights[:, owners == patient][:, :1]).all()
    assert (resamples.counts.sum(axis=1) == resamples.patients).all()
    order = np.random.default_rng(0).permutation(len(owners))
    shuffled = Resamples.draw(owners[order].tolist(), 25, seed=1)
    np.testing.assert_array_equal(shuffled.weights(), weights[:, order])


def test_blocks_do_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = make_predictions()
    resamples = Resamples.draw(predictions.patient_ids, 31, seed=2)
    whole = bootstrap_values(predictions, resamples, THRESHOLDS)
    monkeypatch.setattr("medvlp.metrics.bootstrap.BLOCK_ELEMENTS", 300)
    for metric, values in bootstrap_values(predictions, resamples, THRESHOLDS).items():
        np.testing.assert_allclose(values, whole[metric], atol=1e-14)


def test_interval_leaves_out_and_counts_missing_values() -> None:
    found = interval(np.r_[np.arange(101.0), np.nan, np.nan], alpha=0.1)
    assert (found.low, found.high, found.left_out) == (5.0, 95.0, 2)
    assert np.isnan(interval(np.array([1.0, np.nan])).low)


def test_interval_of_a_mean_has_the_textbook_width() -> None:
    rng = np.random.default_rng(0)
    n = 400
    labels = (rng.random((n, 1)) < 0.5).astype(float)
    scores = np.full((n, 1), 0.5)
    predictions = Predictions([str(i) for i in range(n)], [str(i) for i in range(n)], ["x"], labels, scores)
    values = bootstrap_values(predictions, Resamples.draw(predictions.patient_ids, 2000, 0), {"x": 0.5}, ["accuracy"])
    found = interval(values["accuracy"][:, 0])
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(n), rel=0.1)


def test_paired_difference_is_narrower_than_an_unpaired_one_and_has_the_normal_p() -> None:
    predictions = make_predictions(400, 200)
    better = Predictions(
        predictions.sample_ids,
        predictions.patient_ids,
        predictions.label_names,
        predictions.labels,
        np.clip(predictions.scores + 0.1 * np.nan_to_num(predictions.labels), 0, 1),
    )
    resamples = Resamples.draw(predictions.patient_ids, 500, seed=0)
    a = bootstrap_values(better, resamples, metrics=["auroc"])["auroc"][:, 0]
    b = bootstrap_values(predictions, resamples, metrics=["auroc"])["auroc"][:, 0]
    found = paired_difference(0.08, a, b)
    assert found.low > 0
    assert found.high - found.low < np.quantile(a, 0.975) - np.quantile(b, 0.025)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.08 / (a - b).std(ddof=1)))
    same = paired_difference(0.0, a, a)
    assert (same.low, same.high, same.p) == (0, 0, 1)


def test_holm_equals_the_hand_calculation() -> None:
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 -> .06 (monotone)
    assert holm([0.01, 0.04, float("nan"), 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
