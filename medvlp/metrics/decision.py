"""Decision curves: what acting on a probability is worth beside acting on everybody and on nobody.

Guarantee: every number, and its interval, follows from sums over patients; model and treat-all lines share the
resamples, so that their difference is paired. The threshold is a probability: scores must be calibrated for the curve
to mean what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.metrics.bootstrap import Resamples

THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 100))
"""Threshold probabilities of a curve."""


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit per sample at each threshold, with intervals; treat-none is 0 everywhere.

    `gain` bounds the net benefit beyond the better of treat-all and treat-none, as it is on the whole data.
    """

    thresholds: Float[np.ndarray, " t"]
    model: Float[np.ndarray, " t"]
    model_low: Float[np.ndarray, " t"]
    model_high: Float[np.ndarray, " t"]
    treat_all: Float[np.ndarray, " t"]
    treat_all_low: Float[np.ndarray, " t"]
    treat_all_high: Float[np.ndarray, " t"]
    gain_low: Float[np.ndarray, " t"]
    gain_high: Float[np.ndarray, " t"]


def net_benefit(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], thresholds: Sequence[float] = THRESHOLDS
) -> Float[np.ndarray, " t"]:
    """Return TP / n - FP / n · t / (1 - t) of `score >= t` (Vickers and Elkin, Medical Decision Making 2006).

    Args:
        labels: 1, 0 or NaN (left out).
        scores: Probabilities.
        thresholds: Between 0 and 1, 1 excluded: how many false alarms a hit is worth.

    Returns:
        Net true positives per sample; NaN without samples.
    """
    known = ~np.isnan(labels)
    sums = _sums(labels[known], scores[known], np.zeros(int(known.sum()), dtype=np.intp), 1, np.asarray(thresholds))
    return _benefits(np.ones((1, 1)), sums, np.asarray(thresholds))[0][0]


def decision_curve(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    resamples: Resamples,
    thresholds: Sequence[float] = THRESHOLDS,
    alpha: float = 0.05,
) -> DecisionCurve:
    """Return the decision curve of one label with percentile intervals over patients; see `net_benefit`."""
    levels = np.asarray(thresholds, dtype=np.float64)
    if ((levels <= 0) | (levels >= 1)).any():
        raise ValueError("threshold probabilities must lie between 0 and 1")
    known = ~np.isnan(labels)
    sums = _sums(labels[known], scores[known], resamples.patient_of_sample[known], resamples.patients, levels)
    once = np.ones((1, resamples.patients))
    (model,), (treat_all,) = (part for part in _benefits(once, sums, levels))
    drawn, drawn_all = _benefits(resamples.counts.astype(np.float64), sums, levels)
    other = np.where(treat_all > 0, drawn_all, 0.0)
    bounds = [_quantiles(values, alpha) for values in (drawn, drawn_all, drawn - other)]
    (low, high), (low_all, high_all), (gain_low, gain_high) = bounds
    return DecisionCurve(levels, model, low, high, treat_all, low_all, high_all, gain_low, gain_high)


def _sums(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    patients: np.ndarray,
    count: int,
    thresholds: Float[np.ndarray, " t"],
) -> Float[np.ndarray, "p 2t+2"]:
    """Return for each patient true and false positives at each threshold, positives, and samples."""
    columns = len(thresholds)
    reached = np.searchsorted(thresholds, scores, side="right")  # thresholds that a score reaches
    table = np.zeros((count, 2, columns + 1))
    np.add.at(table, (patients, (labels != 1).astype(np.intp), reached), 1.0)
    # A score that reaches threshold i reaches all below it.
    called = table[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
    positives = np.bincount(patients, weights=labels == 1, minlength=count)
    samples = np.bincount(patients, minlength=count)
    return np.column_stack([called[:, 0], called[:, 1], positives, samples])


def _benefits(
    counts: Float[np.ndarray, "r p"], sums: Float[np.ndarray, "p c"], thresholds: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, "r t"], Float[np.ndarray, "r t"]]:
    total, columns = counts @ sums, len(thresholds)
    odds = thresholds / (1 - thresholds)
    true, false = total[:, :columns], total[:, columns : 2 * columns]
    positives, samples = total[:, -2:-1], total[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (true - odds * false) / samples, (positives - odds * (samples - positives)) / samples


def _quantiles(values: Float[np.ndarray, "r t"], alpha: float) -> tuple[np.ndarray, np.ndarray]:
    found = values[~np.isnan(values).any(axis=1)]
    if len(found) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2], axis=0)
    return low, high
