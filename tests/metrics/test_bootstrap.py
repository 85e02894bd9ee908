"""The vectorised bootstrap against a loop over scikit-learn on the same multiplicities."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.classification import METRICS, ece, score_predictions
from medvlp.metrics.intervals import percentile_interval
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
    order = np.random.default_rng(0).permutation(len(owners))
    shuffled = Resamples.draw(owners[order].tolist(), 25, seed=1)
    np.testing.assert_array_equal(shuffled.weights(), weights[:, order])


def test_a_patient_is_drawn_alike_whoever_else_is_there_and_otherwise_in_another_data_set_or_seed() -> None:
    patients = [f"p{i}" for i in range(300)]
    everybody = Resamples.draw(patients, 200, seed=4, dataset="nih")
    some = Resamples.draw(patients[::3], 200, seed=4, dataset="nih")
    np.testing.assert_array_equal(everybody.weights()[:, ::3], some.weights())
    for other in (Resamples.draw(patients, 200, 5, "nih"), Resamples.draw(patients, 200, 4, "vindr")):
        assert abs(np.corrcoef(other.counts.ravel(), everybody.counts.ravel())[0, 1]) < 0.02
    # Poisson with mean 1: mean and variance 1, P(0) = 1 / e; two patients are independent.
    assert everybody.counts.mean() == pytest.approx(1, abs=0.02)
    assert everybody.counts.var() == pytest.approx(1, abs=0.03)
    assert (everybody.counts == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert np.abs(np.corrcoef(everybody.counts.T) - np.eye(300)).mean() < 0.08


def test_the_jackknife_leaves_out_each_patient_once() -> None:
    predictions = make_predictions()
    one_by_one = Resamples.jackknife(predictions.patient_ids)
    patients = len(set(predictions.patient_ids))
    assert one_by_one.counts.shape == (patients, patients)
    np.testing.assert_array_equal(one_by_one.counts, 1 - np.eye(patients))
    many = Resamples.jackknife([f"p{i}" for i in range(950)])
    assert many.counts.shape == (200, 950)
    np.testing.assert_array_equal((many.counts == 0).sum(axis=0), 1)
    assert set((many.counts == 0).sum(axis=1)) == {4, 5}


def test_blocks_do_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = make_predictions()
    resamples = Resamples.draw(predictions.patient_ids, 31, seed=2)
    whole = bootstrap_values(predictions, resamples, THRESHOLDS)
    monkeypatch.setattr("medvlp.metrics.bootstrap.BLOCK_ELEMENTS", 300)
    for metric, values in bootstrap_values(predictions, resamples, THRESHOLDS).items():
        np.testing.assert_allclose(values, whole[metric], atol=1e-14)


def test_percentiles_of_a_mean_have_the_textbook_width() -> None:
    rng = np.random.default_rng(0)
    n = 400
    labels = (rng.random((n, 1)) < 0.5).astype(float)
    scores = np.full((n, 1), 0.5)
    predictions = Predictions([str(i) for i in range(n)], [str(i) for i in range(n)], ["x"], labels, scores)
    values = bootstrap_values(predictions, Resamples.draw(predictions.patient_ids, 2000, 0), {"x": 0.5}, ["accuracy"])
    found = percentile_interval(values["accuracy"][:, 0])
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(n), rel=0.1)
