"""Calibration of probabilities: errors over bins of equal width or equal mass, Brier's parts, reliability, scaling.

Guarantee: labels are 1, 0 or NaN (left out). Equal scores stand in one bin. The parts of the Brier score add up to it
exactly. Scaling is fitted on the predictions given to it, which must be validation predictions; it never turns the
order of scores round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import optimize, special

from medvlp.metrics.classification import ECE_BINS, ece_bin
from medvlp.metrics.intervals import percentile_interval

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.metrics.bootstrap import Resamples

NAN = float("nan")
Binning = Literal["width", "mass"]
SMALLEST_PROBABILITY = 1e-7
"""Probabilities are kept this far from 0 and 1 before their logit is taken."""
STEEPEST = 100.0
"""Slopes of a fitted scaling lie between 1 / 100 and 100: separable validation scores would ask for an infinite one."""


def bins_of(scores: Float[np.ndarray, " n"], bins: int = ECE_BINS, binning: Binning = "width") -> Int[np.ndarray, " n"]:
    """Return the bin of each probability.

    Args:
        scores: Probabilities.
        bins: Their number.
        binning: `width`: those of `ece_bin`; `mass`: as many samples in each as equal scores allow, which share a bin.
    """
    if binning == "width":
        return ece_bin(scores, bins)
    values, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = (np.cumsum(count) - count / 2) / max(len(scores), 1)
    return np.minimum((middle * bins).astype(np.intp), bins - 1)[place.reshape(-1)] if len(values) else place


def calibration_error(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> float:
    """Return the expected calibration error: the mean over samples of the gap |mean score - share| of their bin."""
    labels, scores = _known(labels, scores)
    if not len(scores):
        return NAN
    gaps = np.bincount(bins_of(scores, bins, binning), weights=scores - labels)
    return float(np.abs(gaps).sum() / len(scores))


def resampled_calibration_error(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    resamples: Resamples,
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> Float[np.ndarray, " r"]:
    """Return the calibration error in every resample of patients, in the bins of the whole data."""
    known = ~np.isnan(labels)
    patients = resamples.patient_of_sample[known]
    labels, scores = _known(labels, scores)
    sums = np.zeros((resamples.patients, bins + 2))
    np.add.at(sums, (patients, bins_of(scores, bins, binning)), scores - labels)
    np.add.at(sums, (patients, bins + 1), 1.0)
    total = resamples.counts.astype(np.float64) @ sums
    count = total[:, -1]
    gaps = np.abs(total[:, :-1]).sum(axis=1)
    return np.divide(gaps, count, out=np.full(len(total), NAN), where=count > 0)


@dataclass(frozen=True, slots=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty + within (Murphy 1973; Stephenson, Coelho, Jolliffe 2008).

    `reliability` is the squared gap between mean score and share of the bins, `resolution` what the bins tell apart,
    `uncertainty` the variance of the label, `within` what scores do inside of bins.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_parts(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> BrierParts:
    """Return the Brier score and its parts; NaN without samples."""
    labels, scores = _known(labels, scores)
    if not len(scores):
        return BrierParts(NAN, NAN, NAN, NAN, NAN)
    which = bins_of(scores, bins, binning)
    size = np.maximum(np.bincount(which), 1)
    mean, share = (np.bincount(which, weights=values) / size for values in (scores, labels))
    prevalence = float(labels.mean())
    reliability = float(((mean - share)[which] ** 2).mean())
    resolution = float(((share[which] - prevalence) ** 2).mean())
    apart = scores - mean[which]
    within = float((apart**2).mean() - 2 * (apart * (labels - share[which])).mean())
    return BrierParts(
        float(((scores - labels) ** 2).mean()), reliability, resolution, prevalence * (1 - prevalence), within
    )


@dataclass(frozen=True)
class Reliability:
    """Reliability curve: of each filled bin the mean score, the share of positives with its interval, and the size."""

    score: Float[np.ndarray, " b"]
    share: Float[np.ndarray, " b"]
    low: Float[np.ndarray, " b"]
    high: Float[np.ndarray, " b"]
    size: Int[np.ndarray, " b"]


def reliability_curve(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    resamples: Resamples,
    bins: int = ECE_BINS,
    binning: Binning = "width",
    alpha: float = 0.05,
) -> Reliability:
    """Return the reliability curve with intervals over patients.

    A bin in which every label is the same has the bound of Clopper and Pearson for its patients on the open side.
    """
    known = ~np.isnan(labels)
    patients, count = resamples.patient_of_sample[known], resamples.patients
    labels, scores = _known(labels, scores)
    which = bins_of(scores, bins, binning)
    filled, which = np.unique(which, return_inverse=True)
    sums = np.zeros((2, count, len(filled)))
    np.add.at(sums[0], (patients, which), labels)
    np.add.at(sums[1], (patients, which), 1.0)
    size = sums[1].sum(axis=0)
    share = sums[0].sum(axis=0) / size
    positive, all_of = (resamples.counts.astype(np.float64) @ part for part in sums)
    drawn = np.divide(positive, all_of, out=np.full_like(all_of, NAN), where=all_of > 0)
    low, high = (np.empty(len(filled)) for _ in range(2))
    for i, patients_in in enumerate((sums[1] > 0).sum(axis=0)):
        bounds = percentile_interval(drawn[:, i], alpha)
        reach = (alpha / 2) ** (1 / patients_in)
        low[i] = reach if share[i] == 1 else bounds.low
        high[i] = 1 - reach if share[i] == 0 else bounds.high
    score = np.bincount(which, weights=scores, minlength=len(filled)) / size
    return Reliability(score, share, low, high, size.astype(np.intp))


@dataclass(frozen=True, slots=True)
class Scaling:
    """Maps a probability p to sigmoid(slope · logit(p) + intercept)."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, scores: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Return the scaled probabilities."""
        return special.expit(self.slope * logits(scores) + self.intercept)

    @property
    def temperature(self) -> float:
        """Return what logits are divided by."""
        return 1 / self.slope


def logits(scores: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return log odds of probabilities, kept finite; see `SMALLEST_PROBABILITY`."""
    return special.logit(np.clip(np.asarray(scores, dtype=np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))


def fit_temperature(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Scaling | None:
    """Fit one temperature by maximum likelihood (Guo et al., On calibration of modern neural networks, 2017).

    Args:
        labels: Of validation samples.
        scores: Their probabilities.

    Returns:
        The scaling; None where a class is missing, or where the scores do not rise with the label.
    """
    labels, scores = _known(labels, scores)
    if len(np.unique(labels)) < 2:
        return None
    found = logits(scores)

    def loss(log_slope: float) -> float:
        return float(_negative_log_likelihood(np.exp(log_slope) * found, labels))

    edge = np.log(STEEPEST)
    fitted = optimize.minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-10})
    return _rising(Scaling(float(np.exp(fitted.x))))


def fit_platt(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Scaling | None:
    """Fit slope and intercept by maximum likelihood with Platt's softened targets (Platt 1999; Lin, Lin, Weng 2007).

    The targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2) keep the fit finite where the classes are separable.

    Args:
        labels: Of validation samples.
        scores: Their probabilities.

    Returns:
        The scaling; None where a class is missing, or where the scores do not rise with the label.
    """
    labels, scores = _known(labels, scores)
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        return None
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.column_stack([logits(scores), np.ones(len(scores))])

    def loss(parameters: Float[np.ndarray, "2"]) -> tuple[float, Float[np.ndarray, "2"]]:
        at = design @ parameters
        return _negative_log_likelihood(at, targets), design.T @ (special.expit(at) - targets) / len(at)

    start = np.array([1.0, 0.0])
    fitted = optimize.minimize(
        loss, start, jac=True, bounds=[(1 / STEEPEST, STEEPEST), (None, None)], options={"ftol": 1e-15, "gtol": 1e-10}
    )
    return _rising(Scaling(float(fitted.x[0]), float(fitted.x[1])))


def _rising(fitted: Scaling) -> Scaling | None:
    """Return a scaling, None for the flattest there is: the best one would turn the scores round."""
    return fitted if fitted.slope > 1.01 / STEEPEST else None


def _negative_log_likelihood(at: Float[np.ndarray, " n"], targets: Float[np.ndarray, " n"]) -> float:
    return float(np.mean(np.logaddexp(0, at) - targets * at))


def _known(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    known = ~np.isnan(labels)
    return np.asarray(labels, dtype=np.float64)[known], np.asarray(scores, dtype=np.float64)[known]
