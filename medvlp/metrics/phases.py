"""Scores of phases of videos: the one label that is called in each frame, judged within each video, then averaged.

Guarantee: `video_accuracy` and `video_f1` need no threshold: the label with the highest probability is called, of equal
ones the first. Every video counts alike, however long it is. All other scores are those of `classification`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.classification import METRICS, ClassificationScoring
from medvlp.metrics.scoring import NAN, Score

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.metrics.bootstrap import Resamples
    from medvlp.types import Predictions

VIDEO = ("video_accuracy", "video_f1")


class PhaseScoring(ClassificationScoring):
    """As its base, and both scores of `VIDEO`; a patient is a video."""

    metrics: ClassVar[tuple[str, ...]] = (*METRICS, *VIDEO)

    def scores(self, predictions: Predictions, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`; of a label `video_f1` is the mean over the videos that have the phase."""
        rows = super().scores(predictions, thresholds)
        counts = [(row.label, row.n, row.positives) for row in rows if row.metric == METRICS[0]]
        values = video_values(predictions)
        made = [
            Score(metric, label, mean_of_known(values[metric][:, column]), n, positives)
            for metric in VIDEO
            for column, (label, n, positives) in enumerate(counts)
        ]
        return [*rows, *made]

    def resampled(
        self, predictions: Predictions, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        found = super().resampled(predictions, resamples, thresholds)
        weights = resamples.counts.astype(np.float64)  # of patients in the order of their names, as the values are
        for metric, values in video_values(predictions).items():
            known = ~np.isnan(values)
            total, number = weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64)
            found[metric] = np.divide(total, number, out=np.full_like(total, NAN), where=number > 0)
        return found

    def support(self, predictions: Predictions, thresholds: Mapping[str, float]) -> dict[str, Int[np.ndarray, " k+1"]]:
        """See `Scoring.support`: the videos that have a value."""
        videos = {metric: (~np.isnan(values)).sum(axis=0) for metric, values in video_values(predictions).items()}
        return super().support(predictions, thresholds) | videos


def video_values(predictions: Predictions) -> dict[str, Float[np.ndarray, "v k+1"]]:
    """Return the scores of each video, of each label and then of all, videos sorted by name; NaN where there is none.

    `video_accuracy` of a label is the share of its frames that are called it. `video_f1` of all is the mean over the
    labels that a video has or that are called in it, as scikit-learn's macro F1. Frames without exactly one label that
    is 1 are left out.
    """
    labels, names = predictions.labels, np.asarray(predictions.patient_ids, dtype=str)
    one = (labels == 1).sum(axis=1) == 1
    truth, called = (labels == 1).argmax(axis=1), predictions.scores.argmax(axis=1)
    videos, width = np.unique(names), labels.shape[1]
    found = {metric: np.full((len(videos), width + 1), NAN) for metric in VIDEO}
    for row, video in enumerate(videos):
        own = one & (names == video)
        if not own.any():
            continue
        table = np.zeros((width, width))
        np.add.at(table, (truth[own], called[own]), 1)
        right, has, said = np.diag(table), table.sum(axis=1), table.sum(axis=0)
        f1 = 2 * right / np.maximum(has + said, 1)
        there = has > 0
        found["video_accuracy"][row, :-1][there] = (right / np.maximum(has, 1))[there]
        found["video_accuracy"][row, -1] = right.sum() / has.sum()
        found["video_f1"][row, :-1][there] = f1[there]
        found["video_f1"][row, -1] = f1[there | (said > 0)].mean()
    return found


def mean_of_known(values: Float[np.ndarray, " v"]) -> float:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else NAN
