"""Thresholds against brute force, and what is done where validation does not say enough."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from medvlp.config.finetune import DecisionConfig
from medvlp.finetune.decide import decide
from medvlp.finetune.notes import sentences
from medvlp.tasks.base import Samples


def samples(labels: np.ndarray) -> Samples:
    ids = [str(i) for i in range(len(labels))]
    return Samples(np.arange(len(labels)), ids, ids, [f"l{k}" for k in range(labels.shape[1])], labels)


def config(**changes: object) -> DecisionConfig:
    return DecisionConfig.model_validate({"calibration": "none", **changes})


def rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float, float]:
    called = scores >= threshold
    true, false = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
    f1 = 2 * true / (true + false + (labels == 1).sum())
    return f1, true / (labels == 1).sum(), 1 - false / (labels == 0).sum()


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_the_best_of_all_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((60, 1)) < 0.4).astype(float)
    logits = np.round(labels + rng.normal(0, 1.2, (60, 1)), 1)  # with ties
    scores = expit(logits[:, 0])
    found = {}
    for rule, target in (("f1", None), ("youden", None), ("sensitivity", 0.9), ("specificity", 0.8)):
        (one,), notes = decide(samples(labels), logits, config(threshold=rule, target=target))
        assert notes == []
        assert one.threshold is not None
        found[rule] = rates(labels[:, 0], scores, one.threshold)
    every = [rates(labels[:, 0], scores, level) for level in np.unique(scores)]
    assert found["f1"][0] == max(f1 for f1, _, _ in every)
    assert sum(found["youden"][1:]) == pytest.approx(max(se + sp for _, se, sp in every))
    assert found["sensitivity"][2] == max(sp for _, se, sp in every if se >= 0.9)
    assert found["sensitivity"][1] >= 0.9
    assert found["specificity"][1] == max(se for _, se, sp in every if sp >= 0.8)
    assert found["specificity"][2] >= 0.8


def test_rounding_in_another_batch_turns_no_validation_answer() -> None:
    labels, logits = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([[1.3], [0.2], [0.9], [-1.0]])
    (one,), _ = decide(samples(labels), logits, config())
    scores = expit(logits[:, 0])
    assert one.threshold is not None
    for noise in (-1e-8, 1e-8):
        positive = one.positive(scores + noise)
        assert positive is not None
        assert positive.tolist() == [True, False, True, False]


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_calibration_brings_probabilities_to_shares_and_keeps_their_order(how: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.5, 4000)
    labels = (rng.random(4000) < expit(truth)).astype(float)[:, None]
    labels[::50] = np.nan
    logits = 3 * truth[:, None] + (2.0 if how == "platt" else 0.0)  # overconfident
    (one,), notes = decide(samples(labels), logits, config(calibration=how))
    assert notes == []
    assert one.slope == pytest.approx(1 / 3, rel=0.1)
    assert one.intercept == pytest.approx(-2 / 3 if how == "platt" else 0, abs=0.1)
    calibrated = one.probabilities(logits[:, 0])
    assert (np.argsort(calibrated, kind="stable") == np.argsort(logits[:, 0], kind="stable")).all()
    np.testing.assert_allclose(calibrated, expit(truth), atol=0.05)


def test_what_validation_cannot_tell_is_left_and_said() -> None:
    rng = np.random.default_rng(1)
    few, one_class, reversed_ = np.zeros(40), np.zeros(40), np.tile([0.0, 1.0], 20)
    few[:3] = 1
    labels = np.stack([few, one_class, reversed_, np.full(40, np.nan)], axis=1)
    logits = np.stack([few, rng.normal(size=40), -3 * reversed_, rng.normal(size=40)], axis=1)
    found, notes = decide(samples(labels), logits, DecisionConfig())
    assert all((one.slope, one.intercept) == (1.0, 0.0) for one in found)
    assert [one.threshold is None for one in found] == [False, True, False, True]
    assert sentences(notes) == [
        "Not calibrated, because validation has fewer than 5 images of a class: l0, l1, l3.",
        "Without yes and no, because on validation no threshold can be chosen: l1, l3.",
        "Not calibrated, because on validation the score does not rise with the label: l2.",
    ]


def test_a_validation_without_a_mistake_fits_no_temperature() -> None:
    labels = np.tile([0.0, 1.0], 20)[:, None]
    (one,), notes = decide(samples(labels), 4 * labels - 1, config(calibration="temperature"))
    assert one.slope == 1
    assert notes == [("Not calibrated, because validation is told apart without a mistake", "l0")]
    (one,), notes = decide(samples(labels), 4 * labels - 1, config(calibration="platt"))  # whose targets are softened
    assert notes == []
    assert 0.9 < one.probabilities(np.array([3.0]))[0] < 1


def test_a_specificity_that_nothing_reaches_gives_no_threshold() -> None:
    labels, logits = np.array([[0.0], [1.0]]), np.array([[2.0], [1.0]])
    (one,), notes = decide(samples(labels), logits, config(threshold="specificity", target=0.9))
    assert one.threshold is None
    assert one.positive(np.array([0.5])) is None
    assert "no threshold can be chosen" in notes[0][0]
