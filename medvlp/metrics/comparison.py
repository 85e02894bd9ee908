"""Paired comparison of two encoders, and Holm's correction over many comparisons.

Guarantee: both values of a difference come from the same resamples of the same patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvlp.metrics.bootstrap import interval

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Bootstrap interval and two-sided p of a difference of two scores."""

    low: float
    high: float
    p: float
    left_out: int


def paired_difference(
    difference: float, values_a: Float[np.ndarray, " r"], values_b: Float[np.ndarray, " r"], alpha: float = 0.05
) -> PairedDifference:
    """Compare two scores by their values in the same resamples.

    The interval is the percentile interval of the difference. The p is that of `difference` divided by the bootstrap
    standard error under the normal distribution: a share of resamples cannot fall below 1 / resamples, which a
    correction for many comparisons would turn into "never significant". p is 1 where the two never differ, NaN where
    there is no value.

    Args:
        difference: Difference of the two scores on all samples, a - b.
        values_a: Score a in each resample.
        values_b: Score b in the same resamples.
        alpha: One minus the coverage of the interval.
    """
    differences = values_a - values_b
    bounds = interval(differences, alpha)
    found = differences[~np.isnan(differences)]
    if len(found) < 2 or np.isnan(difference):
        return PairedDifference(bounds.low, bounds.high, float("nan"), bounds.left_out)
    error = float(found.std(ddof=1))
    # Two encoders with the same predictions leave a rounding residue, not an error.
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 1e-12 else float(abs(difference) < 1e-12)
    return PairedDifference(bounds.low, bounds.high, p, bounds.left_out)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979).

    NaN stays NaN and is not counted.

    The i-th smallest of m is multiplied by m - i + 1; the results are made monotone and cut at 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted.tolist()
