"""DeLong's covariance of AUROCs on the same samples, also of patients who have several, and the paired test of two.

Guarantee: with one sample per patient equal to the structural-component estimator of DeLong, DeLong and Clarke-Pearson
(Biometrics 1988), computed from midranks in O(n log n) (Sun and Xu, IEEE Signal Processing Letters 2014). Samples of
one patient are summed before they are squared, as by Obuchowski (Biometrics 1997); the two differ where a patient has
both positives and negatives, by the factor of the mixed term alone: sqrt(a b) against I / (I - 1), with a and b those
factors of the patients with positives and with negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ROUNDING = 1e-12
"""A standard error below this is a residue of rounding: the two scorers are the same."""


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


def auroc_influence(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, "e n"],
    patients: Int[np.ndarray, " n"] | None = None,
    count: int | None = None,
) -> tuple[Float[np.ndarray, " e"], Float[np.ndarray, "p e"]]:
    """Return the AUROC of each of `e` scorers, and what each patient adds to it: the covariance is its cross product.

    Influences of different labels, encoders, seeds and draws on the same patients may be averaged or subtracted: their
    squares then give the variance of the mean or the difference.

    Args:
        labels: 1, 0 or NaN (left out).
        scores: One row per scorer, on the same samples.
        patients: Number of the patient of each sample, from 0; by default every sample is a patient.
        count: Number of patients; by default those of `patients`.

    Raises:
        ValueError: Fewer than two patients with positives, or with negatives.
    """
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    count = count if count is not None else int(patients.max(initial=-1)) + 1
    known = ~np.isnan(np.asarray(labels, dtype=np.float64))
    positive, patients = np.asarray(labels)[known] == 1, patients[known]
    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))[:, known]
    of_positives, of_negatives = patients[positive], patients[~positive]
    groups = [len(np.unique(each)) for each in (of_positives, of_negatives)]
    if min(groups) < 2:
        raise ValueError(
            "DeLong's variance needs two patients with each class, got "
            f"{groups[0]} with positives, {groups[1]} with negatives"
        )
    count_pos, count_neg = len(of_positives), len(of_negatives)
    rank_all = stats.rankdata(values, axis=1)
    share_below = (rank_all[:, positive] - stats.rankdata(values[:, positive], axis=1)) / count_neg
    share_above = 1 - (rank_all[:, ~positive] - stats.rankdata(values[:, ~positive], axis=1)) / count_pos
    areas = share_below.mean(axis=1)
    influence = np.zeros((count, len(values)))
    for share, owner, number in zip((share_below, share_above), (of_positives, of_negatives), groups, strict=True):
        scale = np.sqrt(number / (number - 1)) / len(owner)
        np.add.at(influence, owner, scale * (share.T - areas))
    return areas, influence


def delong_covariance(
    labels: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, "e n"],
    patients: Int[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, " e"], Float[np.ndarray, "e e"]]:
    """Return the AUROC of each of `e` scorers and their covariance; see `auroc_influence`."""
    areas, influence = auroc_influence(labels, scores, patients)
    return areas, influence.T @ influence


def delong_test(
    labels: Float[np.ndarray, " n"],
    scores_a: Float[np.ndarray, " n"],
    scores_b: Float[np.ndarray, " n"],
    alpha: float = 0.05,
    patient_ids: Sequence[str] | None = None,
) -> DelongTest:
    """Test whether two scorers have the same AUROC on the same samples.

    Args:
        labels: 1, 0 or NaN (left out).
        scores_a: Scores of the first.
        scores_b: Scores of the second.
        alpha: One minus the coverage of the interval.
        patient_ids: Patient of each sample, where patients have several.
    """
    patients = None if patient_ids is None else np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    areas, influence = auroc_influence(labels, np.stack([scores_a, scores_b]), patients)
    difference = float(areas[0] - areas[1])
    deviation = float(np.linalg.norm(influence[:, 0] - influence[:, 1]))
    if deviation < ROUNDING:
        nan = float("nan")
        return DelongTest(float(areas[0]), float(areas[1]), difference, nan, nan, nan, nan)
    z = difference / deviation
    width = float(stats.norm.ppf(1 - alpha / 2)) * deviation
    p = float(2 * stats.norm.sf(abs(z)))
    return DelongTest(float(areas[0]), float(areas[1]), difference, difference - width, difference + width, z, p)
