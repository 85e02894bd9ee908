"""Retrieval scores against a slow reference that shuffles equal candidates, and against scikit-learn where none are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import top_k_accuracy_score

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.retrieval import Places, RetrievalScoring, expected_rank, places_of, recall_at
from medvlp.tasks.retrieval import Vectors

THRESHOLDS: dict[str, float] = {}


def by_all_orders(similarity: np.ndarray, right: np.ndarray, k: int) -> tuple[float, float]:
    """Recall at k and rank of one query, averaged over every order of the candidates before a stable sort."""
    hits, ranks = [], []
    for order in itertools.permutations(range(len(similarity))):
        ranked = sorted(order, key=lambda c: -similarity[c])
        first = next(place for place, c in enumerate(ranked) if right[c])
        hits.append(first < k)
        ranks.append(first + 1)
    return float(np.mean(hits)), float(np.mean(ranks))


@pytest.mark.parametrize("seed", range(12))
def test_ties_count_by_expectation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 3, (4, 6)) / 2.0
    right = rng.random((4, 6)) < 0.35
    right[np.arange(4), rng.integers(0, 6, 4)] = True
    places = Places.of(similarity, right)
    for k in (1, 2, 5, 10):
        expected = [by_all_orders(s, r, k) for s, r in zip(similarity, right, strict=True)]
        np.testing.assert_allclose(recall_at(places, k), [hit for hit, _ in expected], atol=1e-12)
        np.testing.assert_allclose(expected_rank(places), [rank for _, rank in expected], atol=1e-12)


def test_recall_without_ties_is_top_k_accuracy() -> None:
    rng = np.random.default_rng(0)
    similarity, right = rng.random((40, 40)), np.eye(40, dtype=bool)
    places = Places.of(similarity, right)
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(np.arange(40), similarity, k=k, labels=np.arange(40))
        assert recall_at(places, k).mean() == pytest.approx(expected)


def test_a_query_without_a_right_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="no right answer"):
        Places.of(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))


def test_many_queries_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = example()
    whole = places_of(kept.images, kept.reports, np.arange(30) % 9, np.arange(30) % 9)
    monkeypatch.setattr("medvlp.metrics.retrieval._QUERIES", 7)
    parts = places_of(kept.images, kept.reports, np.arange(30) % 9, np.arange(30) % 9)
    for name in ("better", "level", "best", "right"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def example(n: int = 30, seed: int = 0) -> Vectors:
    """Two images a study now and then, two studies of one wording, vectors that lean to each other."""
    rng = np.random.default_rng(seed)
    studies = [f"s{i // 2 if i < 10 else i}" for i in range(n)]
    texts = ["same" if study in ("s12", "s13") else study for study in studies]
    centres = {text: rng.normal(size=5) for text in sorted(set(texts))}
    vectors = []
    for noise in (1.0, 0.0):
        rows = np.array([centres[text] + noise * rng.normal(size=5) for text in texts])
        vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return Vectors([f"i{i}" for i in range(n)], [f"p{i // 3}" for i in range(n)], studies, texts, *vectors)


def slow(kept: Vectors, k: int) -> tuple[list[float], list[float]]:
    """Recall at k of each image, and of each study's report."""
    names = sorted(set(kept.texts))
    of = {name: kept.reports[list(kept.texts).index(name)] for name in names}
    to_report, to_image = [], []
    for image, text in zip(kept.images, kept.texts, strict=True):
        ranked = sorted(names, key=lambda name: -round(float(image @ of[name]), 6))
        to_report.append(float(text in ranked[:k]))
    seen = set()
    for study, text in zip(kept.study_ids, kept.texts, strict=True):
        if study not in seen:
            seen.add(study)
            order = sorted(range(len(kept.texts)), key=lambda i: -round(float(kept.images[i] @ of[text]), 6))
            to_image.append(float(any(kept.texts[i] == text for i in order[:k])))
    return to_report, to_image


def test_scores_equal_a_slow_reference() -> None:
    kept, scoring = example(), RetrievalScoring()
    scores = {(s.metric, s.label): s for s in scoring.scores(kept, THRESHOLDS)}
    for k in (1, 5, 10):
        to_report, to_image = slow(kept, k)
        assert scores[f"recall_at_{k}", "image to report"].value == pytest.approx(np.mean(to_report))
        assert scores[f"recall_at_{k}", "report to image"].value == pytest.approx(np.mean(to_image))
        mean = (np.mean(to_report) + np.mean(to_image)) / 2
        assert scores[f"recall_at_{k}", "macro"].value == pytest.approx(mean)
    assert scores["recall_at_1", "image to report"].n == 30
    assert scores["recall_at_1", "report to image"].n == len(set(kept.study_ids)) == 25


def test_vectors_without_difference_get_chance() -> None:
    kept, scoring = example(), RetrievalScoring()
    ones = np.ones_like(kept.images) / np.sqrt(5)
    even = Vectors(kept.sample_ids, kept.patient_ids, kept.study_ids, kept.texts, ones, ones)
    for score in scoring.scores(even, THRESHOLDS):
        assert score.value == pytest.approx(score.chance)
    chances = {(s.metric, s.label): s.chance for s in scoring.scores(kept, THRESHOLDS)}
    assert chances["recall_at_5", "image to report"] == pytest.approx(5 / len(set(kept.texts)))
    assert chances["median_rank", "image to report"] == pytest.approx((len(set(kept.texts)) + 1) / 2)


def test_a_resample_repeats_the_outcomes_of_its_patients() -> None:
    kept, scoring = example(), RetrievalScoring()
    resamples = Resamples.draw(kept.patient_ids, 12, 3)
    values, outcomes = scoring.resampled(kept, resamples, THRESHOLDS), scoring.outcomes(kept, THRESHOLDS)
    for metric in scoring.metrics:
        centre = np.median if metric == "median_rank" else np.mean
        for r, weights in enumerate(resamples.weights()):
            columns = [np.repeat(column, weights) for column in outcomes[metric].T]
            expected = [centre(column[~np.isnan(column)]) for column in columns]
            assert values[metric][r, :2] == pytest.approx(expected)
            assert values[metric][r, 2] == pytest.approx(np.mean(expected))


def test_vectors_survive_the_table(tmp_path: Path) -> None:
    kept = example()
    kept.to_frame().to_parquet(tmp_path / "x.parquet")
    back = RetrievalScoring().read(pd.read_parquet(tmp_path / "x.parquet"))
    assert (back.texts, back.study_ids) == (kept.texts, kept.study_ids)
    np.testing.assert_allclose(back.images, kept.images, rtol=1e-6)
    empty = Vectors([], [], [], [], np.zeros((0, 1)), np.zeros((0, 1)))
    assert all(np.isnan(s.value) for s in RetrievalScoring().scores(empty, THRESHOLDS))
