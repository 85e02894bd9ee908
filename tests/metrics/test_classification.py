"""Classification metrics against official scorers, torchmetrics values and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from medvlp.metrics import classification as cls
from medvlp.types import Predictions

BINARY = ["binary_plain", "binary_ties", "binary_rare"]


@pytest.fixture(scope="session")
def folder(oracles: Path) -> Path:
    return oracles / "metrics" / "classification"


@pytest.fixture(scope="session")
def values(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text())["values"]


@pytest.mark.parametrize("case", BINARY)
def test_binary_scores_equal_the_reference(folder: Path, values: dict, case: str) -> None:
    data, expected = np.load(folder / f"{case}.npz"), values[case]
    labels, scores = data["labels"].astype(float), data["probabilities"][:, 1]
    assert cls.auroc(labels, scores) == pytest.approx(expected["auroc"], abs=1e-12)
    assert cls.average_precision(labels, scores) == pytest.approx(expected["average_precision"], abs=1e-12)
    assert cls.ece(labels, scores, bins=10) == pytest.approx(expected["ece10_l1"], abs=1e-7)
    assert cls.ece(labels, scores, bins=15) == pytest.approx(expected["ece15_l1"], abs=1e-7)
    assert cls.max_calibration_error(labels, scores, bins=10) == pytest.approx(expected["ece10_max"], abs=1e-7)
    assert cls.max_calibration_error(labels, scores, bins=15) == pytest.approx(expected["ece15_max"], abs=1e-7)
    called = data["logits"].argmax(axis=1).astype(float)
    assert cls.f1(labels, called, 0.5) == pytest.approx(expected["f1"], abs=1e-12)
    assert cls.accuracy(labels, called, 0.5) == pytest.approx(expected["accuracy"], abs=1e-12)
    confidence = data["probabilities"].max(axis=1)
    correct = (called == labels).astype(float)
    assert cls.ece(correct, confidence, bins=15) == pytest.approx(expected["top_label_ece15"], abs=1e-7)


def test_always_positive_has_the_reference_f1_and_chance_auroc(folder: Path, values: dict) -> None:
    data, expected = np.load(folder / "binary_always_positive.npz"), values["binary_always_positive"]
    labels, scores = data["labels"].astype(float), np.ones(len(data["labels"]))
    assert round(100 * cls.f1(labels, scores, 0.5), 2) == expected["multiclass_f1"]
    assert round(100 * cls.accuracy(labels, scores, 0.5), 2) == expected["multiclass_accuracy"]
    assert cls.auroc(labels, scores) == expected["multiclass_auroc"]


@pytest.mark.parametrize("case", ["multilabel_plain", "multilabel_ties", "multilabel_missing"])
def test_multilabel_auroc_and_ap_equal_the_reference(folder: Path, case: str) -> None:
    data = np.load(folder / f"{case}.npz")
    labels, scores = data["labels"].astype(float), data["logits"]
    auroc = np.array([cls.auroc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])
    ap = np.array([cls.average_precision(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])
    np.testing.assert_allclose(auroc, data["auroc_per_class"], atol=1e-12)
    np.testing.assert_allclose(ap, data["ap_per_class"], atol=1e-12)
    two_sided = cls.both_classes(labels)
    assert cls.macro(auroc, two_sided) == pytest.approx(float(data["auroc_macro"]), abs=1e-12)
    assert np.nanmean(ap) == pytest.approx(float(data["ap_macro"]), abs=1e-12)
    key = "ap_macro_two_sided" if case == "multilabel_missing" else "ap_macro"
    assert cls.macro(ap, two_sided) == pytest.approx(float(data[key]), abs=1e-12)


@pytest.mark.parametrize("case", ["multilabel_plain", "multilabel_ties"])
def test_best_threshold_is_that_of_the_pooled_reference(folder: Path, case: str) -> None:
    data = np.load(folder / f"{case}.npz")
    labels, scores = data["labels"].astype(float), 1 / (1 + np.exp(-data["logits"]))
    threshold = cls.best_threshold(labels.ravel(), scores.ravel())
    assert threshold == pytest.approx(float(data["threshold"]), abs=1e-12)
    micro = cls.f1(labels.ravel(), scores.ravel(), threshold)
    assert micro == pytest.approx(float(data["micro_f1_at_least"]), abs=1e-12)
    macro = [cls.f1(labels[:, k], scores[:, k], threshold) for k in range(labels.shape[1])]
    assert np.mean(macro) == pytest.approx(float(data["macro_f1_at_least"]), abs=1e-12)


def test_saturated_logits_keep_their_order(folder: Path) -> None:
    data = np.load(folder / "multilabel_saturated.npz")
    found = [cls.auroc(data["labels"][:, k].astype(float), data["logits"][:, k]) for k in range(2)]
    np.testing.assert_allclose(found, data["auroc_on_logits"], atol=1e-12)


def test_random_data_with_ties_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        labels = (rng.random(60) < 0.3).astype(float)
        labels[:2] = 0, 1
        scores = rng.integers(0, 12, 60) / 12
        threshold = 0.4
        called = scores >= threshold
        assert cls.auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
        assert cls.average_precision(labels, scores) == pytest.approx(
            sk.average_precision_score(labels, scores), abs=1e-12
        )
        assert cls.f1(labels, scores, threshold) == pytest.approx(sk.f1_score(labels, called), abs=1e-12)
        assert cls.sensitivity(labels, scores, threshold) == pytest.approx(sk.recall_score(labels, called), abs=1e-12)
        assert cls.specificity(labels, scores, threshold) == pytest.approx(
            sk.recall_score(1 - labels, ~called), abs=1e-12
        )
        assert cls.accuracy(labels, scores, threshold) == pytest.approx(sk.accuracy_score(labels, called), abs=1e-12)
        assert cls.brier(labels, scores) == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-12)
        best = max(sk.f1_score(labels, scores >= candidate) for candidate in np.unique(scores))
        chosen = cls.best_threshold(labels, scores)
        assert sk.f1_score(labels, scores >= chosen) == pytest.approx(best, abs=1e-12)


def test_unknown_labels_are_left_out_and_missing_classes_have_no_value() -> None:
    labels = np.array([1.0, 0.0, np.nan, 1.0])
    scores = np.array([0.9, 0.1, 0.0, 0.8])
    assert cls.auroc(labels, scores) == 1.0
    assert np.isnan(cls.auroc(np.ones(3), np.arange(3.0) / 3))
    assert cls.average_precision(np.ones(3), np.arange(3.0) / 3) == 1.0
    assert np.isnan(cls.average_precision(np.zeros(3), np.arange(3.0) / 3))
    assert np.isnan(cls.f1(np.zeros(3), np.arange(3.0) / 3, 0.5))
    assert np.isnan(cls.best_threshold(np.zeros(3), np.arange(3.0) / 3))
    assert np.isnan(cls.ece(np.full(2, np.nan), np.zeros(2)))


def test_uncertain_labels_and_scores_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="uncertain"):
        cls.auroc(np.array([1.0, -1.0]), np.zeros(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        cls.ece(np.array([1.0, 0.0]), np.array([2.0, 0.0]))


def test_score_predictions_uses_the_given_thresholds_and_counts_samples() -> None:
    labels = np.array([[1.0, 0], [0, 0], [1, np.nan], [0, 0]])
    scores = np.array([[0.9, 0.2], [0.7, 0.1], [0.6, 0.5], [0.1, 0.3]])
    predictions = Predictions(list("abcd"), list("abcd"), ["x", "y"], labels, scores)
    found = {(s.metric, s.label): s for s in cls.score_predictions(predictions, {"x": 0.65, "y": float("nan")})}
    assert found["f1", "x"].value == pytest.approx(0.5)
    assert found["auroc", "x"].value == found["auroc", "macro"].value == pytest.approx(0.75)
    assert np.isnan(found["auroc", "y"].value)
    assert (found["auroc", "y"].n, found["auroc", "macro"].n, found["auroc", "x"].positives) == (3, 4, 2)
    assert {metric for metric, _ in found} == set(cls.METRICS)
