"""BenchX's scorers against values computed with its own code."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from medvlp.metrics import benchx
from medvlp.metrics.retrieval import Places, precision_at, recall_at


@pytest.fixture(scope="session")
def metrics(oracles: Path) -> Path:
    return oracles / "metrics"


def cases(folder: Path, pattern: str) -> list[tuple[str, dict[str, np.ndarray]]]:
    found = [(file.stem, dict(np.load(file))) for file in sorted(folder.glob(f"{pattern}.npz"))]
    assert found
    return found


def test_two_classes(metrics: Path) -> None:
    for name, case in cases(metrics / "classification", "binary_*"):
        found = benchx.multiclass_scores(case["labels"], case["logits"])
        stored = {key.removeprefix("benchx_"): float(value) for key, value in case.items() if key.startswith("benchx_")}
        assert stored
        for key, value in stored.items():
            assert found[key] == pytest.approx(value, rel=1e-6), (name, key)


def test_several_findings(metrics: Path) -> None:
    for name, case in cases(metrics / "classification", "multilabel_*"):
        if not any(key.startswith("benchx_") for key in case):
            continue
        found = benchx.multilabel_scores(case["labels"], case["logits"])
        np.testing.assert_allclose(found.class_auroc, case["benchx_class_auroc"], rtol=1e-6, err_msg=name)
        for key, value in case.items():
            if key.startswith("benchx_") and key != "benchx_class_auroc":
                assert found.scores[key.removeprefix("benchx_")] == pytest.approx(float(value), rel=1e-6), (name, key)
        if "threshold" in case:
            assert found.threshold == pytest.approx(float(case["threshold"]), rel=1e-6), name


def test_missing_labels_and_classes() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5]])
    with pytest.raises(ValueError, match="no rule for labels"):
        benchx.multilabel_scores(np.array([[1, np.nan], [0, 1], [0, 0]]), logits)
    found = benchx.multilabel_scores(np.array([[1, 0], [0, 0], [0, 0]]), logits)
    assert found.class_auroc[0] == 1
    assert np.isnan(found.class_auroc[1])
    assert np.isnan(found.scores["multilabel_auroc"])


def test_three_classes_have_no_f1() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    found = benchx.multiclass_scores(labels, logits)
    shares = softmax(logits, axis=1)
    assert found["multiclass_accuracy"] == round(100 * np.mean(logits.argmax(axis=1) == labels), 2)
    assert found["multiclass_auroc"] == pytest.approx(roc_auc_score(labels, shares, multi_class="ovr"))
    assert set(found) == {"multiclass_accuracy", "multiclass_auroc"}


def test_zero_shot(metrics: Path) -> None:
    for _, case in cases(metrics / "retrieval", "zero_shot_*"):
        tables = case["prompt_similarities"]
        classes = case["logits"].shape[1]
        labels = np.eye(classes, dtype=int)[case["labels"]]
        found = benchx.zero_shot_scores([tables[:, k] for k in range(classes)], labels)
        np.testing.assert_allclose(found.logits, case["logits"], rtol=1e-6, atol=1e-9)
        assert found.mean_best_f1 == pytest.approx(float(case["mean_best_f1"]), rel=1e-6)
        assert found.mean_accuracy == pytest.approx(float(case["mean_accuracy_at_best_f1"]), rel=1e-6)
        assert found.accuracy == pytest.approx(float(case["accuracy"]), rel=1e-6)


def test_the_answer_to_an_image_depends_on_the_others() -> None:
    tables = [np.array([[0.9], [0.8], [0.1]]), np.array([[0.5], [0.5], [0.4]])]
    labels = np.array([[1, 0], [1, 0], [0, 1]])
    together = benchx.zero_shot_scores(tables, labels).logits.argmax(axis=1)
    alone = benchx.zero_shot_scores([table[1:2] for table in tables], labels[1:2]).logits.argmax(axis=1)
    assert (together[1], alone[0]) == (1, 0)


def test_retrieval(metrics: Path) -> None:
    for name, case in cases(metrics / "retrieval", "case_*"):
        image, text = (case[key] / np.linalg.norm(case[key], axis=1, keepdims=True) for key in ("image", "text"))
        similarity = image @ text.T
        found, chances = benchx.retrieval_outcomes(similarity, case["labels"]), benchx.retrieval_chances(case["labels"])
        assert case["k"].tolist() == list(benchx.RETRIEVAL_AT)
        own = np.eye(len(image), dtype=bool)
        for row, k in enumerate(benchx.RETRIEVAL_AT):
            expected = {
                "hit_at_k": found[f"Hit@{k}"],
                "precision_at_k": found[f"Precision@{k}"],
                "recall_image_to_text": recall_at(Places.of(similarity, own), k),
                "recall_text_to_image": recall_at(Places.of(similarity.T, own), k),
                "chance_hit": chances[f"Hit@{k}"],
                "chance_recall": recall_at(Places.of(similarity, own).by_chance(), k),
            }
            for key, values in expected.items():
                assert values.mean() == pytest.approx(float(case[key][row]), rel=1e-6), (name, key, k)
            chance = chances[f"Precision@{k}"].mean()
            assert chance == pytest.approx(float(case["chance_precision"]), rel=1e-6), name


@pytest.mark.parametrize("seed", range(8))
def test_precision_counts_ties_by_expectation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity, right = rng.integers(0, 3, (3, 6)) / 2.0, rng.random((3, 6)) < 0.4
    for k in (1, 3, 6, 9):
        for row in range(3):
            orders = [
                sorted(order, key=lambda c, row=row: -similarity[row, c]) for order in itertools.permutations(range(6))
            ]
            expected = np.mean([right[row, order[:k]].sum() / k for order in orders])
            assert precision_at(similarity, right, k)[row] == pytest.approx(expected)
