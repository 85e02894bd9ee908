"""Scores of BenchX from kept probabilities: against its own code's numbers, and against scikit-learn in resamples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score, precision_recall_curve

from medvlp.metrics.benchx_classification import BenchxClassificationScoring, legacy_values, pooled_f1, single_precision
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.scoring import SCORINGS
from medvlp.types import Predictions


def kept(labels: np.ndarray, scores: np.ndarray) -> Predictions:
    n, names = len(labels), [f"label {k}" for k in range(labels.shape[1])]
    return Predictions([str(i) for i in range(n)], [f"p{i // 2}" for i in range(n)], names, labels, scores)


def macros(predictions: Predictions) -> dict[str, float]:
    scoring = BenchxClassificationScoring()
    thresholds = scoring.thresholds(predictions)
    return {row.metric: row.value for row in scoring.scores(predictions, thresholds) if row.label == "macro"}


def cases(oracles: Path, pattern: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(file.stem, dict(np.load(file))) for file in (oracles / "metrics/classification").glob(f"{pattern}.npz")]
    assert found
    return found


def test_f1_at_argmax_is_benchxs_from_the_probability_alone(oracles: Path) -> None:
    for name, case in cases(oracles, "binary_*"):
        logits = case["logits"].astype(np.float64)
        labels = case["labels"].astype(np.float64)[:, None]
        found = macros(kept(labels, expit(logits[:, 1:] - logits[:, :1])))
        stored = round(float(case["benchx_multiclass_f1"]), 2)
        assert round(100 * found["argmax_f1"], 2) == pytest.approx(stored, abs=1e-9), name
        assert "legacy_auroc" not in found


def test_at_equal_logits_argmax_takes_the_first_class() -> None:
    found = macros(kept(np.array([[1.0], [1.0], [0.0]]), np.array([[0.5], [0.7], [0.2]])))
    assert found["argmax_f1"] == pytest.approx(2 / 3)


def test_auroc_in_single_precision_and_f1_at_a_pooled_threshold_are_benchxs(oracles: Path) -> None:
    tested = 0
    for name, case in cases(oracles, "multilabel_*"):
        labels = case["labels"].astype(np.float64)
        if "benchx_multilabel_auroc" not in case or np.isnan(labels).any():
            continue
        tested += 1
        predictions = kept(labels, expit(case["logits"].astype(np.float64)))
        found = macros(predictions)
        area = float(case["benchx_multilabel_auroc"])
        assert found["legacy_auroc"] == pytest.approx(area, rel=1e-6, nan_ok=True), name
        if "benchx_macro_f1" in case:
            assert round(100 * found["pooled_f1"], 2) == pytest.approx(float(case["benchx_macro_f1"]), abs=1e-9), name
        each = legacy_values(predictions, None)["legacy_auroc"][0, :-1]
        np.testing.assert_allclose(each, case["benchx_class_auroc"], rtol=1e-6, err_msg=name)
    assert tested >= 2


def test_logits_above_seventeen_lose_their_order() -> None:
    logits = np.array([[18.0], [19.0], [30.0], [-2.0]]).repeat(2, axis=1)
    labels = np.array([[0.0, 0], [0, 0], [1, 1], [0, 0]])
    found = macros(kept(labels, expit(logits)))
    assert found["auroc"] == 1
    assert found["legacy_auroc"] == pytest.approx(2 / 3)  # two ties of three pairs


def test_the_logit_is_found_again_to_the_bit() -> None:
    import torch

    logits = np.random.default_rng(0).normal(0, 8, 20_000).astype(np.float32)
    logits = logits[np.abs(logits) < 25]
    expected = torch.from_numpy(logits).sigmoid().numpy()
    np.testing.assert_array_equal(single_precision(expit(logits.astype(np.float64))[:, None])[:, 0], expected)


def test_missing_labels_and_classes_have_no_value() -> None:
    scores = np.random.default_rng(1).random((6, 2))
    labels = np.array([[1.0, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]])
    found = macros(kept(labels, scores))
    assert np.isnan(found["legacy_auroc"])
    assert not np.isnan(found["auroc"])
    labels[0, 0] = np.nan
    found = macros(kept(labels, scores))
    assert np.isnan(found["pooled_f1"])


def naive_pooled(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    precision, recall, thresholds = precision_recall_curve(labels.ravel(), scores.ravel())
    total = precision + recall
    values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
    called = scores > thresholds[np.flatnonzero(values >= values.max() - 1e-12)[0]]
    return [f1_score(labels[:, k], called[:, k], zero_division=1) for k in range(labels.shape[1])]


@pytest.mark.parametrize("decimals", [1, 6])
def test_resamples_are_the_score_of_repeated_samples(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    labels = (rng.random((40, 3)) < [0.5, 0.2, 0.05]).astype(np.float64)
    predictions = kept(labels, np.round(np.clip(0.4 * labels + 0.6 * rng.random((40, 3)), 0, 1), decimals))
    resamples = Resamples.draw(predictions.patient_ids, 20, 0)
    found = pooled_f1(labels, predictions.scores, resamples)
    for row, weights in zip(found, resamples.weights(), strict=True):
        again = np.repeat(np.arange(40), weights)
        expected = naive_pooled(labels[again], predictions.scores[again])
        np.testing.assert_allclose(row, [*expected, np.mean(expected)], rtol=1e-9)


def test_the_rule_adds_scores_and_changes_none() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random((60, 3)) < 0.4).astype(np.float64)
    predictions = kept(labels, rng.random((60, 3)))
    ours, right = SCORINGS.get("benchx_classification")(), SCORINGS.get("classification")()
    thresholds = right.thresholds(predictions)
    assert ours.metrics[0] == "auroc"
    added = [row for row in ours.scores(predictions, thresholds) if row.metric not in right.metrics]
    rest = [row for row in ours.scores(predictions, thresholds) if row.metric in right.metrics]
    assert [repr(row) for row in rest] == [repr(row) for row in right.scores(predictions, thresholds)]
    assert {row.metric for row in added} == {"legacy_auroc", "pooled_f1"}
    resamples = Resamples.draw(predictions.patient_ids, 10, 0)
    values, support = ours.resampled(predictions, resamples, thresholds), ours.support(predictions, thresholds)
    assert {row.metric for row in added} <= values.keys() & support.keys()
    assert all(values[row.metric].shape == (10, 4) for row in added)
    assert ours.answers("legacy_auroc", predictions, thresholds) is None
