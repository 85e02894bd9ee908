"""Class retrieval against BenchX's values, accuracy of answers against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.class_retrieval import ClassRetrievalScoring
from medvlp.metrics.vqa import VqaScoring
from medvlp.tasks.class_retrieval import ClassVectors
from medvlp.tasks.vqa import Replies


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(case: dict[str, np.ndarray], one_way: bool) -> ClassVectors:
    names = [str(i) for i in range(len(case["image"]))]
    classes = [str(label) for label in case["labels"].tolist()]
    return ClassVectors(names, names, names, names, unit(case["image"]), unit(case["text"]), classes, one_way)


def test_hits_precision_and_chance_are_those_of_benchx(oracles: Path) -> None:
    files = sorted((oracles / "metrics" / "retrieval").glob("case_*.npz"))
    assert files
    for file in files:
        case = dict(np.load(file))
        rule = ClassRetrievalScoring()
        found = {(row.metric, row.label): row for row in rule.scores(vectors(case, True), {})}
        assert {metric for metric, _ in found} == set(rule.metrics[:6])
        for place, k in enumerate(case["k"].tolist()):
            hit, precision = (found[f"{name}_at_{k}", "macro"] for name in ("hit", "precision"))
            assert hit.value == pytest.approx(case["hit_at_k"][place], abs=1e-9), (file.stem, k)
            assert precision.value == pytest.approx(case["precision_at_k"][place], abs=1e-9), (file.stem, k)
            assert hit.chance == pytest.approx(case["chance_hit"][place], abs=1e-9), (file.stem, k)
            assert precision.chance == pytest.approx(float(case["chance_precision"]), abs=1e-9), (file.stem, k)
        both = {(row.metric, row.label): row.value for row in rule.scores(vectors(case, False), {})}
        assert both["hit_at_1", "image to report"] == found["hit_at_1", "macro"].value
        for place, k in enumerate(case["k"].tolist()):
            for way, name in (("image to report", "image_to_text"), ("report to image", "text_to_image")):
                assert both[f"recall_at_{k}", way] == pytest.approx(case[f"recall_{name}"][place], abs=1e-9)


def test_reports_look_for_images_of_their_class_once_per_study() -> None:
    rng = np.random.default_rng(0)
    image, report = unit(rng.normal(size=(6, 4))), unit(rng.normal(size=(6, 4)))
    report[1] = report[0]
    ids, studies = list("abcdef"), list("ssuvwx")
    kept = ClassVectors(ids, ids, studies, studies, image, report, list("AABBCC"), False)
    found = ClassRetrievalScoring().outcomes(kept, {})["hit_at_1"]
    assert np.isnan(found[1, 1])
    assert not np.isnan(np.delete(found[:, 1], 1)).any()
    for row in (0, 2, 3, 4, 5):
        best = int(np.argmax(image @ report[row]))
        assert found[row, 1] == float("AABBCC"[best] == "AABBCC"[row])
    again = ClassVectors.from_frame(kept.to_frame())
    assert (list(again.classes), again.one_way) == (list("AABBCC"), False)


def replies() -> Replies:
    answers, given = ["yes", "no", "left", "mass", "rib"], ["yes", "yes", "left", "nodule", "left"]
    usual = ["no", "no", "left", "nodule", "nodule"]
    closed, seen = [True, True, False, False, False], [True, True, True, True, False]
    return Replies(list("abcde"), list("ppqrs"), ["presence"] * 2 + ["where"] * 3, closed, answers, given, usual, seen)


def test_accuracy_of_all_closed_and_open_questions_and_its_chance() -> None:
    kept = replies()
    rows = {row.metric: row for row in VqaScoring().scores(kept, {}) if row.label == "macro"}
    closed = np.array(kept.closed)
    answers, given, usual = (np.array(part) for part in (kept.answers, kept.given, kept.usual))
    for metric, mask in (("accuracy", closed | True), ("accuracy_closed", closed), ("accuracy_open", ~closed)):
        assert rows[metric].value == pytest.approx(accuracy_score(answers[mask], given[mask]))
        assert rows[metric].chance == pytest.approx(accuracy_score(answers[mask], usual[mask]))
        assert rows[metric].n == mask.sum()
    assert rows["unseen_answers"].value == pytest.approx(0.2)


def test_answers_come_back_from_a_table_and_are_resampled_by_patient() -> None:
    kept = replies()
    assert VqaScoring().read(kept.to_frame()) == kept
    resamples = Resamples.draw(kept.patient_ids, 50, 0, "x")
    values = VqaScoring().resampled(kept, resamples, {})["accuracy"]
    right, asked = np.array([1.0, 1, 0, 0]), np.array([2.0, 1, 1, 1])
    with np.errstate(invalid="ignore"):
        wanted = (resamples.counts @ right) / (resamples.counts @ asked)
    np.testing.assert_allclose(values[:, -1], wanted)
