"""Scores of predicted masks of volumes: Dice, IoU and surface scores of each volume with the structure, in mm.

Guarantee: a structure that is missed altogether counts with Dice 0, surface Dice 0 and the diagonal of the volume as
its distance; it never drops out of a mean. Volumes without the structure are told by `specificity`: the share of them
without a predicted voxel. Every score is per volume first: no large volume outweighs a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.overlap import dice, iou
from medvlp.metrics.scoring import OutcomeScoring
from medvlp.metrics.surface import diagonal_mm, surface_scores
from medvlp.tasks.volume_segmentation import VolumeOutlines

if TYPE_CHECKING:
    import pandas as pd


class VolumeSegmentationScoring(OutcomeScoring[VolumeOutlines]):
    """Mean over volumes of overlap and surface scores."""

    metrics: ClassVar[tuple[str, ...]] = ("dice", "iou", "hd95_mm", "nsd_mm", "specificity")
    shares: ClassVar[frozenset[str]] = frozenset({"dice", "iou", "nsd_mm", "specificity"})

    def __init__(self) -> None:
        self._of: VolumeOutlines | None = None
        self._found: dict[str, np.ndarray] = {}

    def read(self, frame: pd.DataFrame) -> VolumeOutlines:
        """See `Scoring.read`."""
        return VolumeOutlines.from_frame(frame)

    def outcomes(self, predictions: VolumeOutlines, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`; computed once for the predictions that were asked for last."""
        if self._of is not predictions:
            self._of, self._found = predictions, _outcomes(predictions)
        return self._found


def _outcomes(predictions: VolumeOutlines) -> dict[str, np.ndarray]:
    rows = len(predictions.labels)
    counts, surface = np.zeros((rows, 3), dtype=np.int64), np.full((rows, 2), np.nan)
    for row in range(rows):
        reference, predicted = predictions.masks(row)
        counts[row] = (reference & predicted).sum(), predicted.sum(), reference.sum()
        if counts[row, 2]:
            spacing = predictions.spacing_mm[row].tolist()
            missed = diagonal_mm(reference.shape, spacing)
            one = surface_scores(predicted, reference, spacing, predictions.tolerance_mm, missed_mm=missed)
            surface[row] = one.hd95, one.nsd
    there = counts[:, 2] > 0
    values = {
        "dice": dice(counts, "left_out"),
        "iou": iou(counts, "left_out"),
        "hd95_mm": surface[:, 0],
        "nsd_mm": surface[:, 1],
        "specificity": np.where(there, np.nan, counts[:, 1] == 0),
    }
    labels, names = (np.asarray(each, dtype=object) for each in (predictions.labels, predictions.label_names))
    asked = labels[:, None] == names
    return {metric: np.where(asked, value[:, None], np.nan) for metric, value in values.items()}
