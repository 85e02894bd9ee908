"""Paired comparison of two encoders, and corrections over many comparisons.

Guarantee: both values of a difference come from the same resamples, or the same exchanges, of the same patients. A p
value is never exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.suite import Correction

ROUNDING = 1e-12
"""Two encoders with the same predictions leave a rounding residue, not a difference."""
SMALLEST_P = 1e-300
FEWEST_AS_EXTREME = 10
"""Exchanges as extreme as the difference from which on their share is a p value of its own."""


def normal_p(difference: float, error: float) -> float:
    """Return the two-sided p of a difference with a standard error; 1 where both are 0, NaN where there is no value."""
    if np.isnan(difference) or np.isnan(error):
        return float("nan")
    if error <= ROUNDING:
        return 1.0 if abs(difference) <= ROUNDING else SMALLEST_P
    return max(float(2 * stats.norm.sf(abs(difference) / error)), SMALLEST_P)


def bootstrap_p(difference: float, resampled: Float[np.ndarray, " r"]) -> float:
    """Return the normal p of a difference with the standard error of its values in resamples of patients.

    A share of resamples cannot fall below 1 / resamples, which a correction for many comparisons would turn into "never
    significant".
    """
    found = resampled[~np.isnan(resampled)]
    return normal_p(difference, float(found.std(ddof=1))) if len(found) > 1 else float("nan")


def exchange_p(difference: float, exchanged: Float[np.ndarray, " m"], exhaustive: bool = False) -> float:
    """Return the two-sided p of a permutation test.

    Of all exchanges it is the share that are as extreme; of drawn ones the difference itself is counted among them
    (Phipson and Smyth 2010). Where fewer than ten drawn ones are, that share says little more than "small": the normal
    tail with the exchanges' standard deviation stands in, never above the share. Sums of independent signs have lighter
    tails than the normal.

    Args:
        difference: a - b as it is.
        exchanged: a - b after each exchange, NaN where it has no value.
        exhaustive: Whether these are all exchanges there are, and not some that were drawn.
    """
    found = exchanged[~np.isnan(exchanged)]
    if not len(found) or np.isnan(difference):
        return float("nan")
    extreme = int((np.abs(found) >= abs(difference) - ROUNDING).sum())
    if exhaustive:
        return extreme / len(found)
    share = (extreme + 1) / (len(found) + 1)
    if extreme >= FEWEST_AS_EXTREME:
        return share
    return min(share, normal_p(difference, float(np.sqrt(np.mean(found**2)))))


def with_components(difference: float, p: float, random: float, freedom: float) -> float:
    """Return the p of a difference over several draws or seeds from that over patients alone.

    The p at which the interval of `Components.widen` ends at 0: z(p)² V + t(p)² R = difference², with V the variance
    by patients that `p` stands for.

    Args:
        difference: Mean difference.
        p: Over patients alone.
        random: Variance of the mean difference by draws and seeds.
        freedom: Degrees of freedom of `random`.
    """
    if not random > 0 or np.isnan(p) or abs(difference) <= ROUNDING:
        return p
    z = float(stats.norm.isf(p / 2))
    patients = (difference / z) ** 2 if z > 0 else np.inf
    if not np.isfinite(patients):
        return 1.0

    def excess(log_p: float) -> float:
        half = np.exp(log_p) / 2
        reach = np.hypot(stats.norm.isf(half) * patients**0.5, stats.t.isf(half, freedom) * random**0.5)
        return float(reach) - abs(difference)

    lowest = np.log(SMALLEST_P)
    return float(np.exp(optimize.brentq(excess, lowest, 0.0))) if excess(lowest) > 0 else SMALLEST_P


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979).

    They bound the chance of one false finding or more. The i-th smallest of m is multiplied by m - i + 1; the results
    are made monotone and cut at 1. NaN stays NaN and is not counted.
    """
    values, adjusted, order = _sorted(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Benjamini and Hochberg (Journal of the Royal Statistical Society B 1995).

    They bound the expected share of false findings among those called. The i-th smallest of m is multiplied by m / i;
    the results are made monotone from the largest down. NaN stays NaN and is not counted.
    """
    values, adjusted, order = _sorted(p_values)
    factors = len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate((values[order] * factors)[::-1])[::-1], 1.0)
    return adjusted.tolist()


def adjusted(p_values: Sequence[float], correction: Correction) -> list[float]:
    """Return p values adjusted by a named correction."""
    return holm(p_values) if correction == "holm" else benjamini_hochberg(p_values)


def _sorted(p_values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    return values, np.full(len(values), np.nan), order
