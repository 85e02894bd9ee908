"""DeLong's covariance of AUROCs on the same samples, and the paired test of two of them.

Guarantee: equals the structural-component estimator of DeLong, DeLong and Clarke-Pearson (1988), computed from midranks
in O(n log n) (Sun and Xu, IEEE Signal Processing Letters 2014). Samples must be independent: one image per patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class DelongTest:
    """Difference of two AUROCs (a - b) with its Wald interval and two-sided p; NaN p and z where the variance is 0."""

    auroc_a: float
    auroc_b: float
    difference: float
    low: float
    high: float
    z: float
    p: float


def delong_covariance(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, "e n"]
) -> tuple[Float[np.ndarray, " e"], Float[np.ndarray, "e e"]]:
    """Return the AUROC of each of `e` scorers and their covariance.

    Args:
        labels: 1, 0 or NaN (left out).
        scores: One row per scorer, on the same samples.

    Raises:
        ValueError: Fewer than two positives or two negatives.
    """
    known = ~np.isnan(np.asarray(labels, dtype=np.float64))
    positive = np.asarray(labels)[known] == 1
    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))[:, known]
    count_pos, count_neg = int(positive.sum()), int((~positive).sum())
    if min(count_pos, count_neg) < 2:
        raise ValueError(
            f"DeLong's variance needs two samples of each class, got {count_pos} positive, {count_neg} negative"
        )
    pos, neg = values[:, positive], values[:, ~positive]
    rank_all_pos = stats.rankdata(values, axis=1)[:, positive]
    rank_all_neg = stats.rankdata(values, axis=1)[:, ~positive]
    share_below = (rank_all_pos - stats.rankdata(pos, axis=1)) / count_neg
    share_above = 1 - (rank_all_neg - stats.rankdata(neg, axis=1)) / count_pos
    covariance = np.cov(share_below) / count_pos + np.cov(share_above) / count_neg
    return share_below.mean(axis=1), np.atleast_2d(covariance)


def delong_test(
    labels: Float[np.ndarray, " n"],
    scores_a: Float[np.ndarray, " n"],
    scores_b: Float[np.ndarray, " n"],
    alpha: float = 0.05,
) -> DelongTest:
    """Test whether two scorers have the same AUROC on the same samples."""
    areas, covariance = delong_covariance(labels, np.stack([scores_a, scores_b]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    deviation = float(np.sqrt(max(variance, 0.0)))
    # A rounding residue of the subtraction above is no variance.
    if deviation < 1e-12:
        nan = float("nan")
        return DelongTest(float(areas[0]), float(areas[1]), difference, nan, nan, nan, nan)
    z = difference / deviation
    width = float(stats.norm.ppf(1 - alpha / 2)) * deviation
    p = float(2 * stats.norm.sf(abs(z)))
    return DelongTest(float(areas[0]), float(areas[1]), difference, difference - width, difference + width, z, p)
