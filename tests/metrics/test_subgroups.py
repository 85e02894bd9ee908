"""Subgroups against scores of the samples taken out, and gaps against resampled differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.classification import ClassificationScoring
from medvlp.metrics.intervals import interval
from medvlp.metrics.subgroups import NOT_KNOWN, Group, age_bands, subgroups
from medvlp.types import Predictions

SCORING = ClassificationScoring()


def make(samples: int = 600, seed: int = 0, worse: float = 1.0) -> tuple[Predictions, list[str]]:
    """Women are read less well; a few samples come from patients of unknown sex, and a few from a small third group."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, samples // 2, samples)
    sex = np.where(owner % 2 == 0, "F", "M").astype(object)
    sex[owner % 25 == 0] = NOT_KNOWN
    sex[owner % 60 == 1] = "X"
    labels = (rng.random((samples, 1)) < 0.4).astype(float)
    strength = np.where(sex == "F", 2.0 - worse, 2.0)[:, None]
    scores = 1 / (1 + np.exp(-(strength * labels + rng.standard_normal(labels.shape))))
    ids = [f"s{i}" for i in range(samples)]
    return Predictions(ids, [f"p{i}" for i in owner], ["x"], labels, scores), sex.tolist()


def found_in(
    predictions: Predictions, groups: list[str], metric: str = "auroc", resamples: int = 400
) -> dict[str, Group]:
    answers = SCORING.answers(metric, predictions, {"x": 0.6})
    return {
        one.name: one for one in subgroups([answers], groups, Resamples.draw(predictions.patient_ids, resamples, 0))
    }


def masked(predictions: Predictions, kept: np.ndarray) -> Predictions:
    labels = np.where(kept[:, None], predictions.labels, np.nan)
    return Predictions(predictions.sample_ids, predictions.patient_ids, ["x"], labels, predictions.scores)


def test_values_and_counts_are_those_of_the_samples_taken_out() -> None:
    predictions, sex = make()
    found = found_in(predictions, sex)
    assert list(found) == ["F", "M", "X", NOT_KNOWN]
    for name, one in found.items():
        inside = np.array(sex) == name
        labels, scores = predictions.labels[inside, 0], predictions.scores[inside, 0]
        assert one.value == pytest.approx(roc_auc_score(labels, scores))
        owners = np.array(predictions.patient_ids)[inside]
        assert (one.samples, one.patients) == (inside.sum(), len(set(owners)))
        assert one.support == min(len(set(owners[labels == value])) for value in (0, 1))
        assert one.bounds.low < one.value < one.bounds.high


def test_the_gap_is_to_the_largest_group_and_has_its_own_interval() -> None:
    predictions, sex = make()
    found = found_in(predictions, sex)
    reference = max(("F", "M"), key=lambda name: found[name].patients)
    other = found["F" if reference == "M" else "M"]
    assert {one.reference for one in found.values()} == {reference}
    assert (found[reference].gap, found[reference].gap_bounds.low) == (0, 0)
    assert other.gap == pytest.approx(other.value - found[reference].value)
    assert found["F"].value < found["M"].value
    assert not other.gap_bounds.low < 0 < other.gap_bounds.high, "a gap of this size is seen"
    inside = np.array(sex) == "F"
    drawn = [
        np.subtract(
            *(
                bootstrap_values(own, each, metrics=["auroc"])["auroc"][:, 0]
                for own in (masked(predictions, inside), masked(predictions, np.array(sex) == "M"))
            )
        )
        * (1 if reference == "M" else -1)
        for each in (Resamples.draw(predictions.patient_ids, 400, 0), Resamples.jackknife(predictions.patient_ids))
    ]
    assert other.gap_bounds == interval(other.gap, *drawn)
    equal, sex = make(worse=0.0, seed=3)
    gap = found_in(equal, sex)
    alike = gap["F"] if gap["F"].gap else gap["M"]
    assert alike.gap_bounds.low < 0 < alike.gap_bounds.high


def test_groups_of_the_same_patients_are_paired() -> None:
    # Both views of a patient are easy or hard together: their difference is known better than either.
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.random(150) < 0.5, 2)
    right = np.where(hard, rng.random(300) < 0.2, rng.random(300) < 0.95).astype(float)
    right[1::2] = right[::2]
    predictions = Predictions(
        [str(i) for i in range(300)], [str(i // 2) for i in range(300)], ["x"], np.ones((300, 1)), right[:, None]
    )
    found = found_in(predictions, ["PA", "AP"] * 150, "accuracy")
    assert found["AP"].bounds.high - found["AP"].bounds.low > 0.1
    assert (found["AP"].gap_bounds.low, found["AP"].gap_bounds.high) == (0, 0)


def test_small_groups_are_marked_and_never_the_reference() -> None:
    predictions, sex = make()
    found = found_in(predictions, sex)
    assert [name for name, one in found.items() if one.small] == ["X", NOT_KNOWN]
    few, sex = make(24)
    small = found_in(few, sex)
    assert all(one.small and one.reference is None and np.isnan(one.gap) for one in small.values())


def test_a_group_without_positives_has_no_score_and_is_there() -> None:
    predictions, sex = make()
    labels = predictions.labels.copy()
    labels[np.array(sex) == "X"] = 0
    changed = Predictions(predictions.sample_ids, predictions.patient_ids, ["x"], labels, predictions.scores)
    one = found_in(changed, sex)["X"]
    assert np.isnan(one.value)
    assert np.isnan(one.gap)
    assert one.support == 0
    assert one.small


def test_several_cells_give_the_mean_of_them() -> None:
    first, sex = make()
    second = Predictions(first.sample_ids, first.patient_ids, ["x"], first.labels, first.scores[::-1])
    resamples = Resamples.draw(first.patient_ids, 50, 0)
    answers = [SCORING.answers("auroc", one, {}) for one in (first, second)]
    both, one, two = (subgroups(own, sex, resamples) for own in (answers, answers[:1], answers[1:]))
    assert [x.value for x in both] == pytest.approx([(x.value + y.value) / 2 for x, y in zip(one, two, strict=True)])


def test_ages_fall_into_bands() -> None:
    ages = np.array([0, 17.9, 18, 39, 40, 79.5, 80, 101, np.nan])
    expected = ["under 18"] * 2 + ["18 to 39"] * 2 + ["40 to 59", "60 to 79", "80 and over", "80 and over", NOT_KNOWN]
    assert age_bands(ages) == expected


def test_a_gap_of_accuracies_has_the_textbook_width() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(800) < 0.8).astype(float)
    ids = [str(i) for i in range(800)]
    found = found_in(
        Predictions(ids, ids, ["x"], np.ones((800, 1)), right[:, None]), ["A", "B"] * 400, "accuracy", 2000
    )
    half = stats.norm.isf(0.025) * np.sqrt(2 * 0.8 * 0.2 / 400)
    assert found["B"].gap_bounds.high - found["B"].gap_bounds.low == pytest.approx(2 * half, rel=0.1)
