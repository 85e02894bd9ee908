"""Classification metrics against official scorers, torchmetrics values and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from medvlp.metrics import classification as cls
from medvlp.types import Predictions


@pytest.fixture(scope="session")
def folder(oracles: Path) -> Path:
    return oracles / "metrics" / "classification"


def cases(folder: Path, kind: str, needed: str) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Return the reference files of a kind that hold a value."""
    found = [(file.stem, dict(np.load(file))) for file in sorted(folder.glob(f"{kind}_*.npz"))]
    chosen = [(name, case) for name, case in found if needed in case]
    assert chosen
    return chosen


def test_binary_scores_equal_the_reference(folder: Path) -> None:
    for name, case in cases(folder, "binary", "auroc"):
        labels, scores = case["labels"].astype(float), case["probabilities"][:, 1]
        called, confidence = case["logits"].argmax(axis=1).astype(float), case["probabilities"].max(axis=1)
        correct = (called == labels).astype(float)
        found = {
            "auroc": cls.auroc(labels, scores),
            "average_precision": cls.average_precision(labels, scores),
            "f1": cls.f1(labels, called, 0.5),
            "accuracy": cls.accuracy(labels, called, 0.5),
        }
        for bins in (10, 15):
            found[f"ece{bins}_l1"] = cls.ece(labels, scores, bins)
            found[f"ece{bins}_max"] = cls.max_calibration_error(labels, scores, bins)
            found[f"top_label_ece{bins}"] = cls.ece(correct, confidence, bins)
        for metric, value in found.items():  # torchmetrics works in single precision
            assert value == pytest.approx(float(case[metric]), rel=1e-6, abs=1e-7 if "ece" in metric else 0), (
                name,
                metric,
            )


def test_always_positive_has_the_reference_f1_and_chance_auroc(folder: Path) -> None:
    case = np.load(folder / "binary_always_positive.npz")
    labels, scores = case["labels"].astype(float), np.ones(len(case["labels"]))
    assert round(100 * cls.f1(labels, scores, 0.5), 2) == case["benchx_multiclass_f1"]
    assert round(100 * cls.accuracy(labels, scores, 0.5), 2) == case["benchx_multiclass_accuracy"]
    assert cls.auroc(labels, scores) == case["benchx_multiclass_auroc"]


def test_multilabel_auroc_and_ap_equal_the_reference(folder: Path) -> None:
    for name, case in cases(folder, "multilabel", "auroc_per_class"):
        labels, scores = case["labels"].astype(float), case["logits"]
        auroc = np.array([cls.auroc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])
        ap = np.array([cls.average_precision(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])
        np.testing.assert_allclose(auroc, case["auroc_per_class"], atol=1e-12, err_msg=name)
        np.testing.assert_allclose(ap, case["ap_per_class"], atol=1e-12, err_msg=name)
        two_sided = cls.both_classes(labels)
        assert cls.macro(auroc, two_sided) == pytest.approx(float(case["auroc_macro"]), abs=1e-12)
        assert np.nanmean(ap) == pytest.approx(float(case["ap_macro"]), abs=1e-12)
        two_sided_ap = float(case.get("ap_macro_two_sided", case["ap_macro"]))
        assert cls.macro(ap, two_sided) == pytest.approx(two_sided_ap, abs=1e-12)


def test_best_threshold_is_that_of_the_pooled_reference(folder: Path) -> None:
    for name, case in cases(folder, "multilabel", "threshold"):
        labels, scores = case["labels"].astype(float), 1 / (1 + np.exp(-case["logits"]))
        threshold = cls.best_threshold(labels.ravel(), scores.ravel())
        assert threshold == pytest.approx(float(case["threshold"]), abs=1e-12), name
        micro = cls.f1(labels.ravel(), scores.ravel(), threshold)
        assert micro == pytest.approx(float(case["best_micro_f1"]), abs=1e-12), name
        assert micro == pytest.approx(float(case["micro_f1_at_least"]), abs=1e-12), name
        macro = [cls.f1(labels[:, k], scores[:, k], threshold) for k in range(labels.shape[1])]
        assert np.nan_to_num(macro).mean() == pytest.approx(float(case["macro_f1_at_least"]), abs=1e-12), name


def test_saturated_logits_keep_their_order(folder: Path) -> None:
    for name, case in cases(folder, "multilabel", "auroc_on_logits"):
        found = [
            cls.auroc(case["labels"][:, k].astype(float), case["logits"][:, k])
            for k in range(len(case["auroc_on_logits"]))
        ]
        np.testing.assert_allclose(found, case["auroc_on_logits"], atol=1e-12, err_msg=name)


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
