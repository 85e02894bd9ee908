"""Intervals from the values of a score in resamples of patients.

Guarantee: bias-corrected and accelerated (Efron, Journal of the American Statistical Association 1987), widened by
Student's t for the few patients that carry a score. `benchmarks/coverage.py` measures how often they hold the truth. No
interval is given where it would say more than the patients do: where one patient alone carries a class there is none;
where nothing varies because every answer is right, or wrong, it reaches as far as an exact binomial bound. A score that
noise can only raise, such as a calibration error, has an interval of its own, which holds its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special, stats

if TYPE_CHECKING:
    from jaxtyping import Float

NAN = float("nan")
RULE = 3
"""Rises with every change that can move an interval; part of every cell's hash."""
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a score; `left_out` resamples had no value."""

    low: float
    high: float
    left_out: int = 0

    @classmethod
    def unknown(cls, left_out: int = 0) -> Interval:
        """Return an interval without bounds."""
        return cls(NAN, NAN, left_out)


def percentile_interval(values: Float[np.ndarray, " r"], alpha: float = 0.05) -> Interval:
    """Return the percentile interval of the resamples that have a value; no bounds where fewer than two have."""
    found = values[~np.isnan(values)]
    left_out = len(values) - len(found)
    if len(found) < 2:
        return Interval.unknown(left_out)
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high), left_out)


@dataclass(frozen=True, slots=True)
class Influence:
    """What single patients do to a score: the standard error, its degrees of freedom, and the acceleration."""

    error: float
    freedom: float
    acceleration: float

    @classmethod
    def of(cls, jackknife: Float[np.ndarray, " g"]) -> Influence:
        """Return the facts of a jackknife.

        The degrees of freedom are those of the variance's own precision (Satterthwaite): 2 V² / Var(V), with Var(V) of
        a sum of independent squares. A score that hangs on ten positives among a thousand patients has about ten.

        Args:
            jackknife: The score without each patient (or group of patients) in turn.
        """
        pull = jackknife.mean() - jackknife
        squares, groups = pull**2, len(pull)
        total = float(squares.sum())
        if groups < 2 or total <= (_ROUNDING * groups) ** 2:
            return cls(0.0, float("inf"), 0.0)
        spread = float((squares**2).sum()) - total**2 / groups
        freedom = max(2 * total**2 / spread, 1.0) if spread > 0 else float("inf")
        acceleration = float((pull**3).sum()) / (6 * total**1.5)
        return cls(float(np.sqrt(total * (groups - 1) / groups)), freedom, acceleration)


def interval(
    value: float,
    resampled: Float[np.ndarray, " r"],
    jackknife: Float[np.ndarray, " g"],
    alpha: float = 0.05,
    support: int | None = None,
    raised: bool = False,
) -> Interval:
    """Return the interval of a score.

    Args:
        value: The score on all patients.
        resampled: The score in resamples of patients, NaN where it has no value.
        jackknife: The score without each patient (or group of patients) in turn.
        alpha: One minus the coverage.
        support: For a share, the independent patients that carry it (of the rarer class where it needs both); None for
            a score that is no share.
        raised: Whether noise alone raises the score from 0, as it does the mean size of gaps.
    """
    found = resampled[~np.isnan(resampled)]
    missing = len(resampled) - len(found)
    # Without one patient there is no score: its class has one patient alone, whose spread nobody knows.
    if len(found) < 2 or np.isnan(value) or np.isnan(jackknife).any() or len(jackknife) < 2:
        return Interval.unknown(missing)
    if np.ptp(found) < _ROUNDING:
        return _at_the_end(value, support, alpha, missing)
    if raised:
        return _of_gaps(value, found, alpha, missing)
    below = (np.sign(np.round(found - value, 12)) < 0).mean() + (np.round(found - value, 12) == 0).mean() / 2
    bias = special.ndtri(np.clip(below, 1 / (len(found) + 1), len(found) / (len(found) + 1)))
    influence = Influence.of(jackknife)
    reach = _student(1 - alpha / 2, influence.freedom) * np.array([-1.0, 1.0]) + bias
    # Where the acceleration is extreme the formula turns over at its pole; beyond it the bound is the last resample.
    shares = special.ndtr(bias + reach / np.maximum(1 - influence.acceleration * reach, 1e-6))
    low, high = np.quantile(found, shares)
    return Interval(float(low), float(high), missing)


def _of_gaps(value: float, found: Float[np.ndarray, " r"], alpha: float, missing: int) -> Interval:
    """Return the interval of a mean size of gaps.

    Noise raises it, and in a resample raises it again, so that BCa would end at the lowest resample. What it adds to
    the square of a gap it adds twice; of what it adds to a gap of 0 it adds sqrt(2) - 1 times as much again. The lower
    bound is the lower one of what these two leave, the upper one that of the basic bootstrap, and the value lies
    between.
    """
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
    centre = float(found.mean())
    squares = float(np.sqrt(max(2 * value**2 - high**2, 0.0)))
    zeros = value - (1 + np.sqrt(2)) * (centre - value) - (float(high) - centre)
    return Interval(max(min(squares, zeros, value), 0.0), min(max(2 * value - float(low), value), 1.0), missing)


def _student(share: float, freedom: float) -> float:
    """Return the quantile of Student's t, without the checks of `scipy.stats`, which cost more than a resample."""
    return float(stats.t.ppf(share, freedom) if np.isinf(freedom) else special.stdtrit(freedom, share))


def _at_the_end(value: float, support: int | None, alpha: float, missing: int) -> Interval:
    """Return the interval of a score that is the same in every resample.

    A share of 0 or 1 among `support` patients gets Clopper and Pearson's bound; `value` stands on both ends else.
    """
    reach = (alpha / 2) ** (1 / support) if support else 1.0
    if support is not None and abs(value - 1) < _ROUNDING:
        return Interval(reach if support else 0.0, 1.0, missing)
    if support is not None and abs(value) < _ROUNDING:
        return Interval(0.0, 1 - reach if support else 1.0, missing)
    return Interval(value, value, missing)
