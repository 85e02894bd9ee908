"""Scoring rules of CT-CLIP and M3D-CLIP against official values, and what is right beside them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from medvlp.metrics.classification import accuracy, auroc, f1
from medvlp.metrics.ct_clip import corner_threshold, operating_point, overlap_at, weighted_f1
from medvlp.metrics.retrieval import Places, places_of, recall_at

Case = dict[str, np.ndarray]


def cases(objective: str, having: str = "k") -> list[Any]:
    """Return the case files that have an array of this name."""
    beside = Path(os.environ.get("MEDVLP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "oracles"
    files = sorted((Path(os.environ.get("MEDVLP_ORACLES", beside)) / "losses3d" / objective).glob("case_*.npz"))
    missing = pytest.param(Path("missing"), marks=pytest.mark.skip(reason="reference values are missing"))
    return [file for file in files if having in load(file)] or [missing]


def load(file: Path) -> Case:
    with np.load(file) as arrays:
        return {key: np.asarray(arrays[key]) for key in arrays.files}


def softmax_first(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(logits[..., 1] - logits[..., 0]))


@pytest.mark.parametrize("file", cases("ctclip/zero_shot", "labels"), ids=lambda file: file.stem)
def test_zero_shot_scores_are_the_official_ones(file: Path) -> None:
    case = load(file)
    np.testing.assert_allclose(softmax_first(case["logits"]), case["probabilities"], rtol=1e-6)
    for k, (labels, scores) in enumerate(zip(case["labels"].T.astype(float), case["probabilities"].T, strict=True)):
        threshold = corner_threshold(labels, scores)
        above = float(np.nextafter(threshold, 2))
        np.testing.assert_allclose(auroc(labels, scores), case["auroc"][k], rtol=1e-6)
        np.testing.assert_allclose(operating_point(labels, scores), case["operating_point"][k], rtol=1e-6)
        np.testing.assert_allclose(threshold, case["threshold_roc"][k], rtol=1e-6)
        np.testing.assert_allclose(f1(labels, scores, above), case["f1_at_threshold"][k], rtol=1e-6)
        np.testing.assert_allclose(
            weighted_f1(labels, scores, threshold), case["f1_weighted_at_threshold"][k], rtol=1e-6
        )
        np.testing.assert_allclose(accuracy(labels, scores, above), case["accuracy_at_threshold"][k], rtol=1e-6)
        np.testing.assert_allclose(labels[scores >= above].mean(), case["precision_at_threshold"][k], rtol=1e-6)


def test_of_equally_good_points_the_official_one_is_taken() -> None:
    """Against loops: few samples leave several points whose sums or distances differ by rounding alone."""
    for seed in (235, 242, 354, 560, 662, 733):
        rng = np.random.default_rng(seed)
        labels = (rng.random(40) < 0.35).astype(float)
        scores = 1 / (1 + np.exp(-np.round(2 * (rng.standard_normal(40) + 0.6 * labels), 1)))
        best, point = 0.0, (0.0, 0.0)
        for false, true in zip(*sk.roc_curve(labels, scores)[:2], strict=True):
            if true - false > best:
                best, point = true - false, (true, 1 - false)
        assert operating_point(labels, scores) == pytest.approx(point), seed
        nearest, chosen = 9.0, 0.0
        for level in np.linspace(0, 1, 100):
            true, false = ((scores > level)[labels == value].sum() / (labels == value).sum() for value in (1, 0))
            if math.sqrt((1 - true) ** 2 + false**2) <= nearest:
                nearest, chosen = math.sqrt((1 - true) ** 2 + false**2), float(level)
        assert corner_threshold(labels, scores) == pytest.approx(chosen), seed
    unknown = np.append(labels, np.nan), np.append(scores, 0.99)
    assert operating_point(*unknown) == operating_point(labels, scores)
    assert corner_threshold(*unknown) == corner_threshold(labels, scores)


def test_a_finding_that_is_never_called_has_a_high_weighted_f1_and_no_f1() -> None:
    labels, scores = np.array([1.0] + [0.0] * 19), np.zeros(20)
    assert f1(labels, scores, 0.5) == 0
    np.testing.assert_allclose(
        weighted_f1(labels, scores, 0.5), sk.f1_score(labels, scores, average="weighted", zero_division=0)
    )
    assert weighted_f1(labels, scores, 0.5) > 0.9


def test_a_class_that_is_not_there_has_no_weight() -> None:
    for labels in (np.zeros(4), np.ones(4)):
        for scores in (np.array([0.9, 0.1, 0.8, 0.2]), np.zeros(4), np.ones(4)):
            expected = sk.f1_score(labels, scores > 0.5, average="weighted", zero_division=0)
            np.testing.assert_allclose(weighted_f1(labels, scores, 0.5), expected)
    assert math.isnan(weighted_f1(np.full(3, np.nan), np.ones(3), 0.5))


def test_what_is_not_mentioned_is_left_out_of_the_weighted_f1() -> None:
    labels, scores = np.array([1.0, 0.0, np.nan, 1.0]), np.array([0.9, 0.2, 0.9, 0.4])
    expected = sk.f1_score([1, 0, 1], [1, 0, 0], average="weighted")
    np.testing.assert_allclose(weighted_f1(labels, scores, 0.5), expected)


@pytest.mark.parametrize("file", cases("ctclip/volume_to_volume"), ids=lambda file: file.stem)
def test_volume_to_volume_is_official_with_and_without_its_defect(file: Path) -> None:
    case = load(file)
    arguments = case["image"], case["labels"], case["k"].tolist()
    np.testing.assert_allclose(overlap_at(*arguments, own=True), case["score"], rtol=1e-6)
    np.testing.assert_allclose(overlap_at(*arguments, own=True, legacy_average=True), case["score_legacy"], rtol=1e-6)
    ours = overlap_at(*arguments)
    assert (ours <= case["score"] + 1e-12).all()  # a volume overlaps most with itself


def test_a_volume_is_not_in_its_own_gallery() -> None:
    """By hand: of three volumes in one place the first finds the second (half its findings), then the third (none)."""
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert overlap_at(vectors[:3], labels[:3], [1], own=True)[0] == 1
    np.testing.assert_allclose(overlap_at(vectors[:3], labels[:3], [1, 2, 9]), [1 / 3, 1 / 6, 1 / 6])
    np.testing.assert_allclose(overlap_at(vectors, labels, [1]), [(0.5 + 0.5 + 0 + 0) / 4])


@pytest.mark.parametrize("file", cases("ctclip/report_to_volume"), ids=lambda file: file.stem)
def test_report_to_volume_is_official_where_each_report_has_one_volume(file: Path) -> None:
    case = load(file)
    similarity = case["text"] @ case["image"].T
    places = Places.of(similarity, np.eye(len(similarity), dtype=bool))
    found = [recall_at(places, int(k)).mean() for k in case["k"]]
    np.testing.assert_allclose(found, case["recall"], rtol=1e-6)
    wording = np.unique(case["text"].round(9), axis=0, return_inverse=True)[1].reshape(-1)
    unit = {side: case[side] / np.linalg.norm(case[side], axis=1, keepdims=True) for side in ("text", "image")}
    every = places_of(unit["text"], unit["image"], wording, wording)
    assert (np.array([recall_at(every, int(k)).mean() for k in case["k"]]) >= case["recall"] - 1e-9).all()


@pytest.mark.parametrize("file", cases("m3dclip/retrieval"), ids=lambda file: file.stem)
def test_retrieval_is_official_but_for_the_order_of_ties(file: Path) -> None:
    case = load(file)
    similarity = case["image"] @ case["text"].T
    for direction, table in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        places = Places.of(table.round(12), np.eye(len(table), dtype=bool))
        for k, official in zip(case["k"], case[direction], strict=True):
            best, worst = ((places.better + late * places.level < k).mean() for late in (0, 1))
            assert worst - 1e-6 <= official <= best + 1e-6
            assert worst - 1e-6 <= recall_at(places, int(k)).mean() <= best + 1e-6
            if not places.level.any():
                np.testing.assert_allclose(recall_at(places, int(k)).mean(), official, rtol=1e-6)
