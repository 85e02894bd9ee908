"""Scores of a classification with those of BenchX beside the right ones, from the same kept predictions.

Guarantee: `argmax_f1`, `legacy_auroc` and `pooled_f1` are those of `medvlp.metrics.benchx` (as shares, not rounded),
faults included: one label is called where its probability is above one half; several are scored after a sigmoid in
single precision, and called above one threshold for all of them, chosen on the very samples that it scores. They are
NaN where a label is not known, for which BenchX has no rule. All other scores are those of `classification`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.classification import METRICS, ClassificationScoring
from medvlp.metrics.scoring import NAN, Score

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.types import Predictions

BINARY, MULTILABEL = ("argmax_f1",), ("legacy_auroc", "pooled_f1")
SUPPORT = {"argmax_f1": "f1", "legacy_auroc": "auroc", "pooled_f1": "f1"}
"""Score of BenchX -> the right one that is carried by the same patients."""
ABOVE_HALF = float(np.nextafter(0.5, 1.0))
"""The lowest probability above one half: at one half both logits are equal, and argmax takes the first class."""


class BenchxClassificationScoring(ClassificationScoring):
    """As its base; the scores of BenchX are those of one label, or of several."""

    metrics: ClassVar[tuple[str, ...]] = (*METRICS, *BINARY, *MULTILABEL)

    def scores(self, predictions: Predictions, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`."""
        rows = super().scores(predictions, thresholds)
        counts = [(row.label, row.n, row.positives) for row in rows if row.metric == METRICS[0]]
        for metric, values in legacy_values(predictions, None).items():
            rows += [
                Score(metric, label, float(value), n, positives)
                for value, (label, n, positives) in zip(values[0], counts, strict=True)
            ]
        return rows

    def resampled(
        self, predictions: Predictions, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        return super().resampled(predictions, resamples, thresholds) | legacy_values(predictions, resamples)

    def support(self, predictions: Predictions, thresholds: Mapping[str, float]) -> dict[str, Int[np.ndarray, " k+1"]]:
        """See `Scoring.support`."""
        found = super().support(predictions, thresholds)
        return found | {metric: found[SUPPORT[metric]] for metric in _asked(predictions)}


def legacy_values(predictions: Predictions, resamples: Resamples | None) -> dict[str, Float[np.ndarray, "r k+1"]]:
    """Return the scores of BenchX in every resample of patients, each label's and then what BenchX calls the mean.

    Args:
        predictions: Test predictions with probabilities.
        resamples: None is the data themselves, as one resample.
    """
    labels, width = predictions.labels, len(predictions.label_names) + 1
    drawn = resamples or _once(predictions)
    if np.isnan(labels).any():
        return {metric: np.full((len(drawn.counts), width), NAN) for metric in _asked(predictions)}
    if width == 2:
        levels = dict.fromkeys(predictions.label_names, ABOVE_HALF)
        return {"argmax_f1": bootstrap_values(predictions, drawn, levels, ["f1"])["f1"]}
    single = single_precision(predictions.scores)
    area = bootstrap_values(replace(predictions, scores=single), drawn, {}, ["auroc"])["auroc"]
    area[:, -1] = area[:, :-1].mean(axis=1)  # NaN if a label lacks a class, which BenchX does not leave out
    return {"legacy_auroc": area, "pooled_f1": pooled_f1(labels, single, drawn)}


def single_precision(probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return the probabilities that torch's sigmoid gives for the logits in single precision.

    Those of logits above about 17 are all 1. Up to there the logit is found again exactly from the probability.
    """
    import torch
    from scipy.special import logit

    with np.errstate(divide="ignore"):
        logits = logit(probabilities).astype(np.float32)
    return torch.from_numpy(logits).sigmoid().numpy().astype(np.float64)


def pooled_f1(
    labels: Float[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"], resamples: Resamples
) -> Float[np.ndarray, "r k+1"]:
    """Return F1 of each label above one threshold for all of them, and its mean.

    The threshold is the score of best F1 for "at least", over all samples and labels of the resample, the lowest of
    equal ones. A label without positives and calls has F1 1.
    """
    truth = labels == 1
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, positive, sample = scores.ravel()[order], truth.ravel()[order], order // labels.shape[1]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.empty((len(resamples.counts), labels.shape[1] + 1))
    for row, counts in enumerate(resamples.counts):
        weights = counts[resamples.patient_of_sample].astype(np.float64)
        weight = weights[sample]
        called, right = np.cumsum(weight)[ends], np.cumsum(weight * positive)[ends]
        there = np.diff(called, prepend=0.0) > 0
        if not there.any():
            found[row] = NAN
            continue
        best = np.where(there, 2 * right / np.maximum(called + right[-1], 1), -1.0)
        threshold = ranked[ends[np.flatnonzero(best == best.max())[-1]]]
        above = scores > threshold
        total = weights @ above + weights @ truth
        values = np.divide(2 * (weights @ (above & truth)), total, out=np.ones_like(total), where=total > 0)
        found[row] = *values, values.mean()
    return found


def _asked(predictions: Predictions) -> tuple[str, ...]:
    return BINARY if len(predictions.label_names) == 1 else MULTILABEL


def _once(predictions: Predictions) -> Resamples:
    rows = np.arange(len(predictions.labels))
    return Resamples(np.ones((1, len(rows)), dtype=np.int32), rows)
