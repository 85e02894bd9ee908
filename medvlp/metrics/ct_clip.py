"""Scores that CT-CLIP (arXiv 2403.17834) and the methods compared with it publish, beside ours.

Guarantee: each function gives the official number by its `legacy` argument or by what it is given, and the right one
without: a threshold from validation scores, F1 of the findings, a query that is not in its own gallery, one average for
each K. The official scripts choose the threshold on the labels that they then score, average F1 over absent and
present, and "resample" without resampling, so that their intervals have no width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.classification import f1

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LEVELS = np.linspace(0, 1, 100)
"""Thresholds that the official script tries."""


def operating_point(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return sensitivity and specificity at the highest threshold that maximises their sum (Youden's index).

    Among the corners of the ROC curve; sums that differ by rounding alone are told apart as the official code does.
    """
    from sklearn.metrics import roc_curve

    known = ~np.isnan(labels)
    false, true, _ = roc_curve(labels[known], scores[known])
    best = int(np.argmax(true - false))
    return float(true[best]), float(1 - false[best])


def corner_threshold(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the last of `LEVELS` that brings the point of the ROC curve nearest to its corner; above it is positive.

    Meant for scores of the validation split: the official script gives it those of the test split.
    """
    # Shares as the official script divides them: 1 - specificity rounds otherwise, and near-ties are common.
    true, false = ((scores[labels == value] > LEVELS[:, None]).mean(axis=1) for value in (1, 0))
    distance = np.sqrt((1 - true) ** 2 + false**2)
    return float(LEVELS[np.flatnonzero(distance == distance.min())[-1]])


def weighted_f1(labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], threshold: float) -> float:
    """Return the mean of the F1 of present and of absent, weighted by how many there are: the published "F1".

    It is high for a rare finding that is never called. `classification.f1` is that of the finding.
    """
    known = ~np.isnan(labels)
    labels, called = labels[known], (scores[known] > threshold).astype(np.float64)
    if not len(labels):
        return float("nan")
    present = float(labels.mean())
    found = ((present, labels, called), (1 - present, 1 - labels, 1 - called))
    return sum(share * f1(truth, own, 0.5) for share, truth, own in found if share)


def overlap_at(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n k"],
    at: Sequence[int],
    own: bool = False,
    legacy_average: bool = False,
) -> Float[np.ndarray, " m"]:
    """Return how far the findings of the first K volumes that a volume finds are its own, for each K.

    The gallery are the volumes with a finding; two volumes overlap by the findings of both over those of either. Equal
    cosines keep the order of the volumes.

    Args:
        vectors: One for each volume, of any length.
        labels: 1 where a finding is present.
        at: Numbers of volumes, rising; a smaller gallery counts whole.
        own: A query is in its own gallery, as in the official script: at 1 it finds itself.
        legacy_average: Average also over all smaller K, as the official script does.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = np.flatnonzero(labels.any(axis=1))
    present = labels.astype(bool)
    both = (present[:, None] & present[gallery]).sum(axis=2)
    overlap = both / (present[:, None] | present[gallery]).sum(axis=2)
    cosines = unit @ unit[gallery].T
    if not own:
        cosines[gallery, np.arange(len(gallery))] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")
    ranked = np.take_along_axis(overlap, order, axis=1)
    found = np.take_along_axis(np.isfinite(cosines), order, axis=1)
    means = np.stack(
        [np.where(found[:, :k], ranked[:, :k], 0).sum(axis=1) / found[:, :k].sum(axis=1).clip(min=1) for k in at]
    )
    of_k = means.mean(axis=1)
    return np.cumsum(of_k) / np.arange(1, len(at) + 1) if legacy_average else of_k
