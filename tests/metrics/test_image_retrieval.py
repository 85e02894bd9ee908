"""Images by images: overlap of findings against CT-CLIP's values, without its defects; ties, patients and chance."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvlp.metrics.ct_clip import overlap_at
from medvlp.metrics.image_retrieval import OVERLAP_AT, ImageRetrievalScoring, expected_mean
from medvlp.tasks.image_retrieval import FoundByImages


def kept(vectors: np.ndarray, labels: np.ndarray, patients: list[str] | None = None) -> FoundByImages:
    names = [str(i) for i in range(len(vectors))]
    findings = [f"f{k}" for k in range(labels.shape[1])]
    return FoundByImages(names, patients or names, findings, labels.astype(float), vectors)


def scores(predictions: FoundByImages) -> dict[str, tuple[float, float]]:
    rows = ImageRetrievalScoring().scores(predictions, {})
    return {row.metric: (row.value, row.chance) for row in rows if row.label == "macro"}


def test_it_is_ct_clip_s_rule_without_the_query_in_its_own_gallery(oracles: Path) -> None:
    files = sorted((oracles / "losses3d" / "ctclip" / "volume_to_volume").glob("case_*.npz"))
    assert files
    for file in files:
        case = dict(np.load(file))
        found = scores(kept(case["image"].astype(np.float64), case["labels"]))
        right = overlap_at(case["image"], case["labels"], OVERLAP_AT)
        for k, value in zip(OVERLAP_AT, right, strict=True):
            assert found[f"overlap_at_{k}"][0] == pytest.approx(value, rel=1e-6), (file.stem, k)
        # The official rule, by hand: the query put back at the front of what it finds, where it has a finding.
        own, labels = case["labels"].any(axis=1), case["labels"].astype(bool)
        assert case["score"][0] == pytest.approx(own.mean())
        assert found["overlap_at_1"][0] < case["score"][0]
        either = (labels[:, None] | labels[own]).sum(axis=2)
        overlap = (labels[:, None] & labels[own]).sum(axis=2) / either
        unit = case["image"] / np.linalg.norm(case["image"], axis=1, keepdims=True)
        order = np.argsort(-unit @ unit[own].T, axis=1, kind="stable")
        official = [np.take_along_axis(overlap, order, axis=1)[:, :k].mean() for k in case["k"].tolist()]
        np.testing.assert_allclose(official, case["score"], rtol=1e-6)


def test_images_of_the_query_s_patient_are_no_candidates() -> None:
    """Two reconstructions of one scan lie in one place: the nearest one that counts is another patient's."""
    vectors = np.array([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0], [0.1, 1.0]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [1, 1]])
    first = ImageRetrievalScoring().outcomes(kept(vectors, labels, ["a", "a", "b", "c"]), {})["overlap_at_1"][:, 0]
    np.testing.assert_allclose(first, [0.5, 0.5, 0.5, 0.5])
    alone = ImageRetrievalScoring().outcomes(kept(vectors, labels, ["a", "a", "a", "a"]), {})["overlap_at_1"]
    assert np.isnan(alone).all()


def test_equal_vectors_get_what_chance_gives() -> None:
    labels = np.random.default_rng(0).integers(0, 2, (20, 4))
    for found in (scores(kept(np.ones((20, 3)), labels)), scores(kept(np.zeros((20, 3)), labels))):
        assert all(value == pytest.approx(chance) for value, chance in found.values())


def test_ties_are_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(1)
    similarity, values = rng.integers(0, 3, (4, 6)).astype(float), rng.random((4, 6))
    similarity[0, :5] = -np.inf
    for k in (1, 2, 4, 9):
        found = expected_mean(similarity, values, k)
        for row in range(4):
            there = np.flatnonzero(np.isfinite(similarity[row])).tolist()
            orders = [sorted(order, key=lambda i: -similarity[row, i])[:k] for order in permutations(there)]
            assert found[row] == pytest.approx(np.mean([values[row, order].mean() for order in orders]))


def test_what_is_kept_reads_back() -> None:
    rng = np.random.default_rng(2)
    before = kept(rng.normal(size=(6, 3)).astype(np.float32), rng.integers(0, 2, (6, 2)), list("aabbcc"))
    after = FoundByImages.from_frame(pd.DataFrame(before.to_frame()))
    assert scores(after) == scores(before)
    assert (after.findings, after.patient_ids) == (before.findings, before.patient_ids)
