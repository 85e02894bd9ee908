"""Values of every metric in resamples of patients; `intervals` makes intervals of them.

Guarantee: how often a patient stands in a resample follows from the seed, the data set and the patient alone. All
labels, metrics, encoders, draws and tasks of a data set share their resamples, so that differences and ranks are
paired; data sets are independent. A value of a resample equals, to rounding, the metric of the data with each patient's
samples repeated that often. Where a label lacks a class that the metric needs the value is NaN.

Cost: one sort per label; then a gather, a running sum and a dot product per label and resample (see
`benchmarks/speed/bootstrap.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.classification import ECE_BINS, METRICS, both_classes, ece_bin

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.types import Predictions

BLOCK_ELEMENTS = 400_000
"""Resamples x samples handled at once: a block and its running sums stay in the second-level cache."""
JACKKNIFE_GROUPS, JACKKNIFE_ONE_BY_ONE = 200, 400
"""Groups of patients that are left out in turn, and the number of patients up to which a group is one patient."""


@dataclass(frozen=True)
class Resamples:
    """Multiplicities of patients in each resample, and the patient of each sample."""

    counts: Int[np.ndarray, "r p"]
    patient_of_sample: Int[np.ndarray, " n"]

    @classmethod
    def draw(cls, patient_ids: Sequence[str], resamples: int, seed: int, dataset: str = "") -> Resamples:
        """Draw each patient 0, 1, 2, ... times by Poisson's law with mean 1 (Hanley and MacGibbon 2006).

        Against drawing a fixed number with replacement the multiplicities of one patient do not depend on who else is
        there: tasks that look at different patients of a data set still share their resamples.

        Args:
            patient_ids: Patient of each sample.
            resamples: Number of resamples.
            seed: Another seed draws other resamples.
            dataset: Patients of the same name in other data sets are other patients.
        """
        patients, patient_of_sample = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
        counts = np.empty((len(patients), resamples), dtype=np.int32)
        for row, patient in zip(counts, patients.tolist(), strict=True):
            key = hashlib.sha256(f"{seed}\0{dataset}\0{patient}".encode()).digest()
            row[:] = np.random.default_rng(int.from_bytes(key)).poisson(1.0, resamples)
        return cls(np.ascontiguousarray(counts.T), patient_of_sample)

    @classmethod
    def jackknife(cls, patient_ids: Sequence[str]) -> Resamples:
        """Leave out one patient at a time, or one of 200 groups where there are more than 400 patients."""
        patients, patient_of_sample = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
        groups = JACKKNIFE_GROUPS if len(patients) > JACKKNIFE_ONE_BY_ONE else len(patients)
        kept = np.arange(groups)[:, None] != np.arange(len(patients)) % groups
        return cls(kept.astype(np.int32), patient_of_sample)

    @property
    def patients(self) -> int:
        """Number of patients."""
        return self.counts.shape[1]

    def weights(self) -> Int[np.ndarray, "r n"]:
        """Return how often each sample stands in each resample."""
        return self.counts[:, self.patient_of_sample]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield runs of resamples with their patient multiplicities, small enough for the cache."""
        step = max(1, BLOCK_ELEMENTS // max(len(self.patient_of_sample), 1))
        for start in range(0, len(self.counts), step):
            yield slice(start, start + step), self.counts[start : start + step]


class _RankedLabel:
    """One label sorted once: where each positive falls among the negatives and among the positives."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> None:
        positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        positive = positive[np.argsort(scores[positive], kind="stable")]
        negative = negative[np.argsort(scores[negative], kind="stable")]
        of_positive, of_negative = scores[positive], scores[negative]
        self.positive, self.negative = patients[positive], patients[negative]
        self.negatives_below = np.searchsorted(of_negative, of_positive, side="left")
        self.negatives_not_above = np.searchsorted(of_negative, of_positive, side="right")
        self.positives_below = np.searchsorted(of_positive, of_positive, side="left")

    @staticmethod
    def _running(weights: np.ndarray) -> np.ndarray:
        total = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=np.int32)
        np.cumsum(weights, axis=1, dtype=np.int32, out=total[:, 1:])
        return total

    def values(self, counts: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `auroc` and `average_precision` of every resample (NaN where a class is missing)."""
        weight = np.take(counts, self.positive, axis=1)
        negatives = self._running(np.take(counts, self.negative, axis=1))
        count_pos = weight.sum(axis=1, dtype=np.float64)
        count_neg = negatives[:, -1].astype(np.float64)
        below = negatives[:, self.negatives_below]
        results = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            if "auroc" in metrics:
                twice = (below + negatives[:, self.negatives_not_above]).astype(np.float64)
                results["auroc"] = np.einsum("bp,bp->b", weight, twice) / 2 / (count_pos * count_neg)
            if "average_precision" in metrics:
                true = count_pos[:, None] - self._running(weight)[:, self.positives_below]
                false = count_neg[:, None] - below
                precision = np.divide(true, true + false, out=np.zeros_like(true), where=weight > 0)
                results["average_precision"] = np.einsum("bp,bp->b", weight, precision) / count_pos
        return results


class _CountedLabel:
    """One label as sums over patients: metrics at a threshold, Brier and calibration error are ratios of such sums."""

    CALLED_POSITIVE, POSITIVE, CALLED, KNOWN, CORRECT, SQUARED, BINS = range(7)

    def __init__(
        self, labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, count: int, threshold: float
    ) -> None:
        known = ~np.isnan(labels)
        labels, scores, patients = labels[known], scores[known], patients[known]
        self.threshold = threshold
        called = scores >= threshold
        positive = labels == 1
        columns = [
            positive & called,
            positive,
            called,
            np.ones(len(labels)),
            positive == called,
            (scores - labels) ** 2,
        ]
        sums = np.zeros((count, self.BINS + ECE_BINS + 1))
        for i, column in enumerate(columns):
            sums[:, i] = np.bincount(patients, weights=np.asarray(column, dtype=np.float64), minlength=count)
        np.add.at(sums, (patients, self.BINS + ece_bin(scores)), scores - labels)
        self.sums = sums

    def values(self, counts: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the metrics that are ratios of sums, for every resample."""
        total = counts.astype(np.float64) @ self.sums
        both, positive, called, known, correct, squared = (total[:, i] for i in range(self.BINS))
        negative = known - positive
        gaps = np.abs(total[:, self.BINS :]).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "f1": np.where(positive > 0, 2 * both / (positive + called), np.nan),
                "sensitivity": both / positive,
                "specificity": (negative - (called - both)) / negative,
                "accuracy": correct / known,
                "ece": gaps / known,
                "brier": squared / known,
            }
        if np.isnan(self.threshold):
            for metric in ("f1", "sensitivity", "specificity", "accuracy"):
                found[metric] = np.full(len(total), np.nan)
        return {metric: value for metric, value in found.items() if metric in metrics}


def bootstrap_values(
    predictions: Predictions,
    resamples: Resamples,
    thresholds: Mapping[str, float] | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Float[np.ndarray, "r k+1"]]:
    """Return every metric in every resample: one column per label, then the macro mean.

    The macro mean is over the labels with both classes in the whole data; it is NaN in a resample in which one of them
    has no value, so that all its values are means over the same labels.

    Args:
        predictions: Predictions on the samples for which `resamples` was drawn, in the same order.
        resamples: Multiplicities of patients.
        thresholds: Label -> threshold from validation; needed for metrics at a threshold.
        metrics: Which of `METRICS`.
    """
    labels, scores = predictions.labels, predictions.scores
    if len(labels) != len(resamples.patient_of_sample):
        raise ValueError(f"{len(labels)} predictions, but resamples of {len(resamples.patient_of_sample)} samples")
    thresholds = thresholds or {}
    patients, count = resamples.patient_of_sample, resamples.patients
    ranked_metrics = [metric for metric in metrics if metric in ("auroc", "average_precision")]
    counted_metrics = [metric for metric in metrics if metric not in ("auroc", "average_precision")]
    names = predictions.label_names
    values = {metric: np.full((len(resamples.counts), len(names) + 1), np.nan) for metric in metrics}
    for k, name in enumerate(names):
        if ranked_metrics:
            ranked = _RankedLabel(labels[:, k], scores[:, k], patients)
            for rows, counts in resamples.blocks():
                for metric, value in ranked.values(counts, ranked_metrics).items():
                    values[metric][rows, k] = value
        if counted_metrics:
            threshold = thresholds.get(name, float("nan"))
            counted = _CountedLabel(labels[:, k], scores[:, k], patients, count, threshold)
            for metric, value in counted.values(resamples.counts, counted_metrics).items():
                values[metric][:, k] = value
    two_sided = np.flatnonzero(both_classes(labels))
    for metric in metrics:
        if len(two_sided):
            values[metric][:, -1] = values[metric][:, two_sided].mean(axis=1)
    return values
