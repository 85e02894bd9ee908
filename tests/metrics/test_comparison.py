"""p values and their corrections by hand, by enumeration, and against statsmodels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medvlp.metrics.answers import Answers
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.classification import METRICS, NEEDS_THRESHOLD, ClassificationScoring, metric_value
from medvlp.metrics.comparison import adjusted, benjamini_hochberg, bootstrap_p, exchange_p, holm, normal_p
from medvlp.metrics.exchange import exchanged_differences, exchanges
from medvlp.types import Predictions

NAMES = ["x", "y"]
SCORING = ClassificationScoring()
LEVELS = ({"x": 0.5, "y": 0.6}, {"x": 0.55, "y": 0.4})


def make_pair(samples: int, patients: int, seed: int = 0, better: float = 0.5) -> tuple[Predictions, Predictions]:
    rng = np.random.default_rng(seed)
    owners = [f"p{i:03d}" for i in rng.integers(0, patients, samples)]
    labels = (rng.random((samples, 2)) < [0.4, 0.25]).astype(float)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    shared = rng.standard_normal(labels.shape)
    ids = [f"s{i}" for i in range(samples)]

    def predictions(strength: float) -> Predictions:
        logits = strength * np.nan_to_num(labels) + 0.7 * shared + 0.7 * rng.standard_normal(labels.shape)
        return Predictions(ids, owners, NAMES, labels, 1 / (1 + np.exp(-np.round(logits, 1))))

    return predictions(0.8 + better), predictions(0.8)


def answers(metric: str, pair: tuple[Predictions, Predictions]) -> list[Answers]:
    return [SCORING.answers(metric, own, levels) for own, levels in zip(pair, LEVELS, strict=True)]


def test_holm_equals_the_hand_calculation() -> None:
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 -> .06 (monotone)
    assert holm([0.01, 0.04, float("nan"), 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == benjamini_hochberg([]) == []


@pytest.mark.parametrize(("correction", "theirs"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")])
def test_corrections_equal_statsmodels(correction: str, theirs: str) -> None:
    from statsmodels.stats.multitest import multipletests

    values = np.random.default_rng(0).random(40) ** 3
    values[3] = values[17]
    np.testing.assert_allclose(adjusted(values, correction), multipletests(values, method=theirs)[1])
    with_gap = adjusted([*values, np.nan], correction)
    np.testing.assert_allclose(with_gap[:-1], multipletests(values, method=theirs)[1])
    assert np.isnan(with_gap[-1])


def test_normal_p_of_equal_scores_is_one_and_never_zero() -> None:
    assert normal_p(0.0, 0.0) == 1
    assert 0 < normal_p(0.5, 0.0) < 1e-200
    assert 0 < normal_p(0.9, 1e-3) < 1e-200
    assert normal_p(0.08, 0.04) == pytest.approx(2 * stats.norm.sf(2))
    assert np.isnan(normal_p(float("nan"), 0.1))


def test_bootstrap_p_uses_the_error_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    resampled = np.r_[rng.normal(0.1, 0.05, 500), np.nan]
    assert bootstrap_p(0.1, resampled) == pytest.approx(2 * stats.norm.sf(0.1 / np.nanstd(resampled, ddof=1)))
    assert bootstrap_p(0.0, np.zeros(5)) == 1
    assert np.isnan(bootstrap_p(0.1, np.array([0.1, np.nan])))


@pytest.mark.parametrize("metric", METRICS)
def test_every_exchange_equals_the_metric_of_exchanged_predictions(metric: str) -> None:
    pair = make_pair(60, 12)
    given = answers(metric, pair)
    patients = sorted(set(pair[0].patient_ids))
    swapped = exchanges(len(patients), 40, seed=3)
    found = exchanged_differences(*given, swapped)
    for row, swap in zip(found, swapped, strict=True):
        moved = np.array([dict(zip(patients, swap, strict=True))[owner] for owner in pair[0].patient_ids])
        values = []
        for side in (0, 1):
            own, other = given[side].answers, given[1 - side].answers
            mixed = np.where(moved[:, None], other, own)
            values.append(
                [
                    metric_value(
                        metric, pair[0].labels[:, k], mixed[:, k], 0.5 if metric in NEEDS_THRESHOLD else np.nan
                    )
                    for k in range(2)
                ]
            )
        expected = np.subtract(*values)
        np.testing.assert_allclose(row, [*expected, expected.mean()], atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_without_an_exchange_the_difference_is_that_of_the_scores(metric: str) -> None:
    pair = make_pair(80, 30)
    values = [
        {score.label: score.value for score in SCORING.scores(own, levels) if score.metric == metric}
        for own, levels in zip(pair, LEVELS, strict=True)
    ]
    found = exchanged_differences(*answers(metric, pair), np.zeros((1, len(set(pair[0].patient_ids))), dtype=bool))[0]
    np.testing.assert_allclose(found, [values[0][name] - values[1][name] for name in (*NAMES, "macro")], atol=1e-12)


def test_few_patients_are_enumerated_and_give_the_exact_p() -> None:
    swapped = exchanges(6, 100, seed=0)
    assert sorted(map(tuple, swapped.tolist())) == sorted(itertools.product([False, True], repeat=6))
    # Accuracy, one sample each: the exact p of a sign test with ties left out, as McNemar's.
    right_a, right_b = np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0])
    patients = [str(i) for i in range(6)]
    labels = np.ones((6, 1))
    pair = [
        Predictions(patients, patients, ["x"], labels, right[:, None].astype(float)) for right in (right_a, right_b)
    ]
    given = [SCORING.answers("accuracy", own, {"x": 0.5}) for own in pair]
    null = exchanged_differences(*given, swapped)[:, 0]
    assert exchange_p(5 / 6, null, exhaustive=True) == stats.binomtest(5, 5).pvalue == 2 / 32


def test_the_p_is_the_share_as_extreme_and_the_normal_tail_behind_it() -> None:
    null = np.r_[np.full(30, 1.0), np.full(30, -1.0), np.zeros(939)]
    assert exchange_p(1.0, null) == 61 / 1000
    assert exchange_p(0.0, null) == 1
    rng = np.random.default_rng(0)
    tail = exchange_p(6.0, rng.standard_normal(2000))
    assert tail == pytest.approx(2 * stats.norm.sf(6), rel=2)
    assert tail < 1 / 2001
    assert np.isnan(exchange_p(0.1, np.array([np.nan])))
    assert exchange_p(0.1, np.array([np.nan, 0.2, -0.1])) == pytest.approx(2 * stats.norm.sf(0.1 / np.sqrt(0.025)))


def test_patients_move_as_a_whole_so_that_copies_of_images_prove_nothing() -> None:
    pair = make_pair(40, 400, seed=2)
    tripled = [
        Predictions(
            [f"{i}" for i in range(120)],
            list(own.patient_ids) * 3,
            NAMES,
            np.tile(own.labels, (3, 1)),
            np.tile(own.scores, (3, 1)),
        )
        for own in pair
    ]
    swapped = exchanges(len(set(pair[0].patient_ids)), 300, seed=0)
    once, thrice = (exchanged_differences(*answers("brier", one), swapped) for one in (pair, tuple(tripled)))
    np.testing.assert_allclose(thrice, once, atol=1e-12)


def test_the_scale_of_a_score_is_not_tested() -> None:
    pair = make_pair(80, 40, better=0.0)
    scaled = Predictions(pair[1].sample_ids, pair[1].patient_ids, NAMES, pair[1].labels, pair[1].scores ** 5 / 7)
    swapped = exchanges(len(set(pair[0].patient_ids)), 50, seed=0)
    for metric in ("auroc", "average_precision"):
        plain, other = (exchanged_differences(*answers(metric, (pair[0], own)), swapped) for own in (pair[1], scaled))
        np.testing.assert_allclose(other, plain, atol=1e-12)


def test_under_the_hypothesis_p_values_are_uniform() -> None:
    found = []
    for seed in range(150):
        pair = make_pair(60, 30, seed=seed, better=0.0)
        null = exchanged_differences(*answers("f1", pair), exchanges(len(set(pair[0].patient_ids)), 200, seed))
        identity = exchanged_differences(*answers("f1", pair), np.zeros((1, len(set(pair[0].patient_ids))), bool))
        found.append(exchange_p(identity[0, 0], null[:, 0]))
    # Both make calls at levels of their own, and so are not alike: few of p below .05 is what counts.
    assert np.mean(np.array(found) < 0.05) < 0.12


def test_answers_to_other_samples_are_refused() -> None:
    pair = make_pair(20, 10)
    shuffled = Predictions(
        list(reversed(pair[1].sample_ids)), pair[1].patient_ids, NAMES, pair[1].labels, pair[1].scores
    )
    with pytest.raises(ValueError, match="same samples"):
        exchanged_differences(*answers("f1", (pair[0], shuffled)), np.zeros((1, 10), dtype=bool))


def test_answers_give_the_scores_in_resamples_too() -> None:
    pair = make_pair(80, 30)
    resamples = Resamples.draw(pair[0].patient_ids, 20, 0)
    expected = SCORING.resampled(pair[0], resamples, LEVELS[0])
    for metric in METRICS:
        np.testing.assert_allclose(SCORING.answers(metric, pair[0], LEVELS[0]).values(resamples), expected[metric])
