"""Scores of binary and multi-label classification.

Guarantee: every function takes labels in {1, 0, NaN} and leaves the NaN ones out. A score that has nothing to be
computed from is NaN, never a made-up value: AUROC without both classes, average precision, F1 and sensitivity without
positives, specificity without negatives, everything else without samples. AUROC, average precision and F1 agree with
scikit-learn, calibration error with torchmetrics. Thresholds come from `best_threshold` on validation predictions;
nothing here looks for one on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.scoring import NAN, Score, Scoring, patient_counts
from medvlp.types import Predictions

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from medvlp.metrics.answers import Answers
    from medvlp.metrics.bootstrap import Resamples

METRICS = (
    "auroc",
    "average_precision",
    "f1",
    "sensitivity",
    "specificity",
    "accuracy",
    "ece",
    "brier",
)
"""Names of all scores of a classification result, in the order of tables."""

LOWER_IS_BETTER = frozenset({"ece", "brier"})
RAISED_BY_NOISE = frozenset({"ece"})
"""Metrics that few samples raise, however well an encoder is calibrated; see `intervals.interval`."""
NEEDS_THRESHOLD = frozenset({"f1", "sensitivity", "specificity", "accuracy"})
ECE_BINS = 15


def _known(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels and scores must be vectors of one length, got {labels.shape} and {scores.shape}")
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels must be 0, 1 or NaN; collapse uncertain labels (-1) by the policy of the task first")
    if np.isnan(scores).any():
        raise ValueError("scores of known labels must not be NaN")
    return labels == 1, scores


def auroc(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in order, ties counting one half."""
    positive, scores = _known(labels, scores)
    negatives = np.sort(scores[~positive])
    pairs = int(positive.sum()) * len(negatives)
    if pairs == 0:
        return NAN
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).sum() / 2 / pairs)


def _counts_from_top(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return distinct scores, falling, with the true and false positives when each is the threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=int)
    true = np.cumsum(positive[order])[last_of_tie]
    return ranked[last_of_tie], true, last_of_tie + 1 - true


def average_precision(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the sum over thresholds of precision times gain in recall (no interpolation); NaN without positives."""
    positive, scores = _known(labels, scores)
    if not positive.any():
        return NAN
    _, true, false = _counts_from_top(positive, scores)
    gain = np.diff(true, prepend=0)
    return float((gain * true / (true + false)).sum() / positive.sum())


def best_threshold(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the lowest score that as threshold (`score >= threshold` is positive) gives the highest F1.

    Meant for validation predictions only. NaN without positives.
    """
    positive, scores = _known(labels, scores)
    if not positive.any():
        return NAN
    thresholds, true, false = _counts_from_top(positive, scores)
    f1_values = 2 * true / (positive.sum() + true + false)
    return float(thresholds[np.flatnonzero(f1_values == f1_values.max())[-1]])


def _confusion(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float
) -> tuple[int, int, int, int]:
    """Return true positives, false positives, false negatives, true negatives."""
    positive, scores = _known(labels, scores)
    called = scores >= threshold
    true, false = int((positive & called).sum()), int((~positive & called).sum())
    return true, false, int(positive.sum()) - true, int((~positive).sum()) - false


def f1(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float) -> float:
    """Return the F1 of `score >= threshold`; 0 where nothing is called positive, NaN without positives."""
    true, false, missed, _ = _confusion(labels, scores, threshold)
    return 2 * true / (2 * true + false + missed) if true + missed and not np.isnan(threshold) else NAN


def sensitivity(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float) -> float:
    """Return the share of positives with `score >= threshold`."""
    true, _, missed, _ = _confusion(labels, scores, threshold)
    return true / (true + missed) if true + missed and not np.isnan(threshold) else NAN


def specificity(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float) -> float:
    """Return the share of negatives with `score < threshold`."""
    _, false, _, clear = _confusion(labels, scores, threshold)
    return clear / (clear + false) if clear + false and not np.isnan(threshold) else NAN


def accuracy(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float) -> float:
    """Return the share of samples on the right side of the threshold."""
    true, false, missed, clear = _confusion(labels, scores, threshold)
    total = true + false + missed + clear
    return (true + clear) / total if total and not np.isnan(threshold) else NAN


def brier(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the mean squared difference of probability and label (Brier 1950)."""
    positive, scores = _known(labels, scores)
    return float(np.mean((scores - positive) ** 2)) if len(scores) else NAN


def ece_bin(scores: Float[np.ndarray, " n"], bins: int = ECE_BINS) -> np.ndarray:
    """Return the bin of each probability: bin i is [i / bins, (i + 1) / bins), 1 has its own, as in torchmetrics."""
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise ValueError("calibration needs probabilities between 0 and 1")
    return np.searchsorted(np.linspace(0, 1, bins + 1), scores, side="right") - 1


def _calibration_gaps(positive: np.ndarray, scores: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return share of samples and signed gap (mean confidence - mean accuracy) of every bin that has samples."""
    which = ece_bin(scores, bins)
    count = np.bincount(which, minlength=bins + 1)
    gap = np.bincount(which, weights=scores - positive, minlength=bins + 1)
    filled = count > 0
    return count[filled] / len(scores), gap[filled] / count[filled]


def ece(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the probability of the positive class (L1, equal-width bins)."""
    positive, scores = _known(labels, scores)
    if not len(scores):
        return NAN
    share, gap = _calibration_gaps(positive, scores, bins)
    return float((share * np.abs(gap)).sum())


def max_calibration_error(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], bins: int = ECE_BINS
) -> float:
    """Return the largest calibration gap of any bin."""
    positive, scores = _known(labels, scores)
    return float(np.abs(_calibration_gaps(positive, scores, bins)[1]).max()) if len(scores) else NAN


def both_classes(labels: Float[np.ndarray, "n k"]) -> np.ndarray:
    """Return for each label whether positives and negatives occur: the labels that enter macro means."""
    return (labels == 1).any(axis=0) & (labels == 0).any(axis=0)


def choose_thresholds(validation: Predictions) -> dict[str, float]:
    """Return the threshold of best F1 for every label, from validation predictions; NaN where there is no positive."""
    return {
        name: best_threshold(validation.labels[:, k], validation.scores[:, k])
        for k, name in enumerate(validation.label_names)
    }


def metric_value(metric: str, labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Return one metric of `METRICS` for one label."""
    plain = {"auroc": auroc, "average_precision": average_precision, "ece": ece, "brier": brier}
    at_threshold = {"f1": f1, "sensitivity": sensitivity, "specificity": specificity, "accuracy": accuracy}
    return plain[metric](labels, scores) if metric in plain else at_threshold[metric](labels, scores, threshold)


def macro(values: Sequence[float] | np.ndarray, two_sided: np.ndarray) -> float:
    """Return the mean over the labels that have both classes; NaN if there is none or one of them has no value."""
    chosen = np.asarray(values, dtype=np.float64)[two_sided]
    return float(chosen.mean()) if len(chosen) else NAN


def score_predictions(predictions: Predictions, thresholds: Mapping[str, float]) -> list[Score]:
    """Return every metric for every label and as macro mean over the labels with both classes.

    Args:
        predictions: Test predictions with probabilities.
        thresholds: Label name -> threshold, chosen on validation predictions.
    """
    labels, scores, names = predictions.labels, predictions.scores, predictions.label_names
    two_sided = both_classes(labels)
    known, positive = (~np.isnan(labels)).sum(axis=0), (labels == 1).sum(axis=0)
    any_known = int((~np.isnan(labels)).any(axis=1).sum())
    results = []
    for metric in METRICS:
        values = [metric_value(metric, labels[:, k], scores[:, k], thresholds[name]) for k, name in enumerate(names)]
        results += [
            Score(metric, name, value, int(known[k]), int(positive[k]))
            for k, (name, value) in enumerate(zip(names, values, strict=True))
        ]
        results.append(Score(metric, "macro", macro(values, two_sided), any_known, int(positive.sum())))
    return results


class ClassificationScoring(Scoring[Predictions]):
    """Binary questions, scored by probability; thresholds are those of best F1 on validation."""

    metrics: ClassVar[tuple[str, ...]] = METRICS

    def read(self, frame: pd.DataFrame) -> Predictions:
        """See `Scoring.read`."""
        return Predictions.from_frame(frame)

    def thresholds(self, validation: Predictions) -> dict[str, float]:
        """See `choose_thresholds`."""
        return choose_thresholds(validation)

    def scores(self, predictions: Predictions, thresholds: Mapping[str, float]) -> list[Score]:
        """See `score_predictions`."""
        return score_predictions(predictions, thresholds)

    def resampled(
        self, predictions: Predictions, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `medvlp.metrics.bootstrap.bootstrap_values`."""
        from medvlp.metrics.bootstrap import bootstrap_values  # which itself needs the metrics of this module

        return bootstrap_values(predictions, resamples, thresholds)

    def support(self, predictions: Predictions, thresholds: Mapping[str, float]) -> dict[str, Int[np.ndarray, " k+1"]]:
        """See `Scoring.support`."""
        patients, labels = predictions.patient_ids, predictions.labels
        return {metric: patient_counts(patients, *_carriers(metric, labels)) for metric in METRICS}

    def answers(self, metric: str, predictions: Predictions, thresholds: Mapping[str, float]) -> Answers | None:
        """See `Scoring.answers`: ranks, answers at the own threshold, or probabilities; None for other metrics."""
        if metric not in METRICS:
            return None
        from medvlp.metrics.answers import Answers, ranks_within
        from medvlp.metrics.bootstrap import bootstrap_values

        names, labels, given = predictions.label_names, predictions.labels, predictions.scores
        levels = np.array([thresholds.get(name, NAN) for name in names])
        if metric in NEEDS_THRESHOLD:
            given = np.where(np.isnan(levels), NAN, given >= levels)
        elif metric not in LOWER_IS_BETTER:
            given = ranks_within(given, labels)
        halves = {name: NAN if np.isnan(level) else 0.5 for name, level in zip(names, levels, strict=True)}

        def resampled(truth: np.ndarray, answers: np.ndarray, resamples: Resamples) -> np.ndarray:
            rows = [""] * len(truth)
            return bootstrap_values(Predictions(rows, rows, names, truth, answers), resamples, halves, [metric])[metric]

        rows = predictions.sample_ids, predictions.patient_ids, names
        return Answers(*rows, labels, given, resampled, _carriers(metric, labels))


def _carriers(metric: str, labels: Float[np.ndarray, "n k"]) -> tuple[np.ndarray, ...]:
    """Return the samples of each class that a metric needs."""
    if metric in ("accuracy", "ece", "brier"):
        return (~np.isnan(labels),)
    return tuple(labels == value for value, spared in ((1, "specificity"), (0, "sensitivity")) if metric != spared)
