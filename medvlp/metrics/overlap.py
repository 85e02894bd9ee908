"""Dice and intersection over union of label maps, per case and class, from counts of pixels.

Guarantee: a class without pixels in prediction and reference has no value, or is right, as the caller says; nothing is
decided silently. Counts of several cases may be added: the overlap of the sum is that of all their pixels together,
which large structures dominate, and is not the mean over cases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Empty = Literal["left_out", "scored"]
"""Classes that a reference does not have. `left_out`: no value, whatever the prediction (MONAI's `ignore_empty`), so
that false alarms on healthy cases go unseen; `scored`: 1 if the prediction has no such pixel either, else 0."""


def overlap_counts(
    predicted: Int[np.ndarray, "*grid"],
    reference: Int[np.ndarray, "*grid"],
    classes: int,
    ignored: int | None = None,
) -> Int[np.ndarray, "k 3"]:
    """Return for each class the pixels that have it in both maps, in the prediction, and in the reference.

    Args:
        predicted: Class of each pixel or voxel, 0 to `classes` - 1; 0 is background.
        reference: The same of the truth.
        classes: Number of classes, background included.
        ignored: Pixels with this value in the reference do not count.

    Raises:
        ValueError: The maps differ in shape, or hold other values.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"the maps have different shapes: {predicted.shape} and {reference.shape}")
    kept = np.ones(reference.shape, dtype=bool) if ignored is None else reference != ignored
    own, true = predicted[kept].astype(np.int64), reference[kept].astype(np.int64)
    for name, values in (("prediction", own), ("reference", true)):
        if len(values) and (values.min() < 0 or values.max() >= classes):
            raise ValueError(f"the {name} holds values outside 0 to {classes - 1}")
    both = np.bincount(true[own == true], minlength=classes)
    return np.stack([both, np.bincount(own, minlength=classes), np.bincount(true, minlength=classes)], axis=1)


def dice(counts: Int[np.ndarray, "*set 3"], empty: Empty) -> Float[np.ndarray, "*set"]:
    """Return 2 × both / (predicted + reference)."""
    return _share(2 * counts[..., 0], counts[..., 1] + counts[..., 2], counts, empty)


def iou(counts: Int[np.ndarray, "*set 3"], empty: Empty) -> Float[np.ndarray, "*set"]:
    """Return both / (predicted + reference - both)."""
    return _share(counts[..., 0], counts[..., 1] + counts[..., 2] - counts[..., 0], counts, empty)


def _share(common: np.ndarray, total: np.ndarray, counts: np.ndarray, empty: Empty) -> Float[np.ndarray, "*set"]:
    value = np.divide(common, total, out=np.ones(total.shape), where=total > 0)
    return np.where(counts[..., 2] == 0, np.nan, value) if empty == "left_out" else value
