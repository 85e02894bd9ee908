"""F1 of findings against scikit-learn, and on labels counted by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import classification_report, precision_recall_fscore_support

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.clinical.findings import METRICS, finding_counts, finding_scores, label_table
from medvlp.text.labeler import FINDINGS

NAN = math.nan


def random_labels(seed: int, n: int = 80, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    generated, reference = (rng.choice([1.0, 0.0, -1.0, NAN], (n, k), p=[0.3, 0.2, 0.2, 0.3]) for _ in range(2))
    return generated, reference


@pytest.mark.parametrize("uncertain", ["present", "absent"])
def test_scores_equal_scikit_learn(uncertain: str) -> None:
    generated, reference = random_labels(0)
    reference[:, 4] = 0
    there, called = ((x == 1) | ((x == -1) & (uncertain == "present")) for x in (reference, generated))
    sums = finding_counts(generated, reference, uncertain).sum(axis=0)
    zero = finding_scores(sums, absent="zero")
    report = classification_report(there, called, output_dict=True, zero_division=0)
    for metric, key in zip(METRICS, ("precision", "recall", "f1-score"), strict=True):
        rows = [*map(str, range(5)), "micro avg", "macro avg"]
        np.testing.assert_allclose(zero[metric], [report[row][key] for row in rows])
    left_out = finding_scores(sums)
    for metric in METRICS:
        assert np.isnan(left_out[metric][4])
        np.testing.assert_allclose(left_out[metric][:4], zero[metric][:4])
        assert left_out[metric][-2] == zero[metric][-2]
        assert left_out[metric][-1] == pytest.approx(zero[metric][:4].mean())


def test_doubtful_samples_are_left_out_for_that_finding() -> None:
    generated, reference = random_labels(1)
    scores = finding_scores(finding_counts(generated, reference, "left_out").sum(axis=0))
    for k in range(5):
        known = (generated[:, k] != -1) & (reference[:, k] != -1)
        expected = precision_recall_fscore_support(
            reference[known, k] == 1, generated[known, k] == 1, average="binary", zero_division=0
        )
        assert [scores[metric][k] for metric in METRICS] == pytest.approx(expected[:3])


def test_a_hand_counted_table() -> None:
    generated = np.array([[1, NAN], [1, 0], [-1, NAN], [NAN, 1.0]])
    reference = np.array([[1, NAN], [0, 0], [1, NAN], [1, NAN]])
    scores = finding_scores(finding_counts(generated, reference, "absent").sum(axis=0))
    np.testing.assert_allclose(scores["precision"], [1 / 2, NAN, 1 / 3, 1 / 2])
    np.testing.assert_allclose(scores["recall"], [1 / 3, NAN, 1 / 3, 1 / 3])
    np.testing.assert_allclose(scores["f1"], [2 / 5, NAN, 2 / 6, 2 / 5])
    nothing = finding_scores(np.zeros((2, 3)))
    assert all(np.isnan(value).all() for value in nothing.values())
    with pytest.raises(ValueError, match="different shapes"):
        finding_counts(generated, reference[:2], "absent")


def test_a_resample_repeats_samples_and_keeps_the_findings_of_the_macro_mean() -> None:
    generated, reference = random_labels(2, 12)
    reference[:, 1] = 0
    reference[3, 1] = 1
    counts = finding_counts(generated, reference, "present")
    counted = counts[..., 2].sum(axis=0) > 0
    resamples = Resamples.draw([f"p{k // 2}" for k in range(12)], 30, 0)
    weights = resamples.weights()
    found = finding_scores(np.einsum("rn,nkc->rkc", weights, counts), counted)
    for row, weight in enumerate(weights):
        expected = finding_scores(np.repeat(counts, weight, axis=0).sum(axis=0))
        for metric in METRICS:
            np.testing.assert_allclose(found[metric][row, :-1], expected[metric][:-1])
            lacking = np.isnan(found[metric][row, :-2][counted]).any()
            assert np.isnan(found[metric][row, -1]) == lacking
    assert np.isnan(found["f1"][:, -1]).any()
    assert not np.isnan(found["f1"][:, -1]).all()


def test_official_label_pairs_are_read_from_text(oracles: Path) -> None:
    with (oracles / "metrics" / "chexpert_labels" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    table = label_table([row["Reports"] for row in rows])
    expected = np.array([[float(row[name]) if row[name] else NAN for name in FINDINGS] for row in rows])
    np.testing.assert_array_equal(table, expected)
    scores = finding_scores(finding_counts(table, expected, "present").sum(axis=0))
    assert (scores["f1"][-2], scores["f1"][-1]) == (1, 1)
    assert label_table([]).shape == (0, len(FINDINGS))
