"""Heads on fixed features against scikit-learn written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medvlp.tasks._probes import TEMPERATURE, _auroc, linear_probe, nearest_neighbours


def make_data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < 0.5).astype(float)
    features = rng.standard_normal((n, 6)) * [1, 10, 100, 1, 1, 0] + 3
    features[:, :2] += labels * [1.0, 8.0]
    return features.astype(np.float32), labels


def test_linear_probe_is_the_logistic_regression_of_highest_validation_auroc() -> None:
    (train, labels), (val, val_labels), (test, _) = make_data(120, 0), make_data(60, 1), make_data(40, 2)
    labels[:30, 1] = np.nan
    scorer, best = linear_probe(["a", "b"], train, labels, val, val_labels, [10.0, 0.001, 0.1])
    for k, name in enumerate(["a", "b"]):
        known = ~np.isnan(labels[:, k])
        x = train[known].astype(float)
        mean, sd = x.mean(axis=0), np.where(x.std(axis=0) > 1e-6, x.std(axis=0), 1)
        found = []
        for c in (0.001, 0.1, 10.0):
            model = LogisticRegression(C=c, max_iter=2000).fit((x - mean) / sd, labels[known, k])
            value = roc_auc_score(val_labels[:, k], model.decision_function((val - mean) / sd))
            found.append((value, c, model.predict_proba((test - mean) / sd)[:, 1]))
        value, c, expected = max(found, key=lambda item: (item[0], -item[1]))
        assert best[name]["C"] == c
        assert best[name]["val_auroc"] == pytest.approx(value)
        np.testing.assert_allclose(scorer(test)[:, k], expected, atol=1e-6)


def test_one_class_and_no_features_give_the_prevalence() -> None:
    (train, labels), (val, val_labels) = make_data(40, 0), make_data(20, 1)
    labels[:, 1] = 1
    scorer, best = linear_probe(["a", "b"], train, labels, val, val_labels, [1.0])
    assert (scorer(val)[:, 1] == 1).all()
    assert best["b"] == {"constant": 1.0}
    scorer, _ = linear_probe(["a", "b"], train[:, :0], labels, val[:, :0], val_labels, [1.0])
    np.testing.assert_allclose(scorer(val[:, :0])[:, 0], labels[:, 0].mean())


def test_neighbours_equal_a_plain_loop_and_k_comes_from_validation() -> None:
    (train, labels), (val, val_labels), (test, _) = make_data(50, 3), make_data(40, 4), make_data(15, 5)
    labels[::7, 0] = np.nan

    def plain(queries: np.ndarray, k: int, label: int) -> np.ndarray:
        rows = [i for i in range(len(train)) if not np.isnan(labels[i, label])]
        scores = []
        for query in queries.astype(float):
            cosines = {i: train[i] @ query / np.linalg.norm(train[i]) / np.linalg.norm(query) for i in rows}
            near = sorted(rows, key=lambda i: -cosines[i])[:k]
            weights = [np.exp(cosines[i] / TEMPERATURE) for i in near]
            scores.append(sum(w * labels[i, label] for w, i in zip(weights, near, strict=True)) / sum(weights))
        return np.array(scores)

    train, val, test = train.astype(float), val.astype(float), test.astype(float)
    scorer, best = nearest_neighbours(["a", "b"], train, labels, val, val_labels, [3, 9, 500])
    for label, name in enumerate(["a", "b"]):
        known = int((~np.isnan(labels[:, label])).sum())
        values = {k: roc_auc_score(val_labels[:, label], plain(val, k, label)) for k in (3, 9, known)}
        assert best[name]["val_auroc"] == pytest.approx(max(values.values()))
        assert values[best[name]["k"]] == pytest.approx(max(values.values()))
        np.testing.assert_allclose(scorer(test)[:, label], plain(test, best[name]["k"], label), atol=1e-9)


def test_the_choice_is_by_the_auroc_of_the_order() -> None:
    rng = np.random.default_rng(3)
    for decimals in (1, 6):  # with and without ties
        scores, positive = rng.normal(size=200).round(decimals), rng.random(200) < 0.2
        assert _auroc(positive, scores) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert _auroc(positive, scores) == _auroc(positive, np.exp(scores / 7))
