"""Errors of readings against scikit-learn, their chance, and their resamples against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.study_reading import StudyReadingScoring
from medvlp.tasks.study_reading import Readings


def made(seed: int = 0, studies: int = 40) -> Readings:
    rng = np.random.default_rng(seed)
    truth = rng.normal(50, 10, (studies, 2))
    truth[rng.random(truth.shape) < 0.2] = np.nan
    answer = np.nan_to_num(truth, nan=40.0) + rng.normal(1, 4, truth.shape)
    patients = [f"p{number // 2}" for number in range(studies)]
    return Readings(
        [f"s{n}" for n in range(studies)], patients, ["EF", "EDV"], truth, answer, np.full_like(truth, 52.0)
    )


def test_scores_are_those_of_the_studies_with_a_truth() -> None:
    kept = made()
    scores = {(row.metric, row.label): row for row in StudyReadingScoring().scores(kept, {})}
    for k, name in enumerate(kept.label_names):
        known = ~np.isnan(kept.truth[:, k])
        truth, answer, mean = kept.truth[known, k], kept.answer[known, k], kept.mean[known, k]
        error, unseen = mean_absolute_error(truth, answer), mean_absolute_error(truth, mean)
        assert scores["mae", name].value == pytest.approx(error)
        assert scores["mae", name].chance == pytest.approx(unseen)
        assert scores["mae_gain", name].value == pytest.approx(unseen - error)
        assert scores["bias", name].value == pytest.approx((answer - truth).mean())
        assert scores["mae", name].n == known.sum()
    both = [scores["mae", name].value for name in kept.label_names]
    assert scores["mae", "macro"].value == pytest.approx(np.mean(both))


def test_intervals_resample_patients() -> None:
    kept = made()
    drawn = Resamples.draw(kept.patient_ids, 20, 0)
    found = StudyReadingScoring().resampled(kept, drawn, {})
    for row, counts in enumerate(drawn.counts):
        times = counts[drawn.patient_of_sample]
        for k in range(2):
            error = np.repeat(np.abs(kept.answer - kept.truth)[:, k], times)
            gain = np.repeat((np.abs(kept.mean - kept.truth) - np.abs(kept.answer - kept.truth))[:, k], times)
            assert found["mae"][row, k] == pytest.approx(np.nanmean(error))
            assert found["mae_gain"][row, k] == pytest.approx(np.nanmean(gain))
