"""Scores of predicted masks: overlap and surface scores of each image with the structure, and overlap of pooled pixels.

Guarantee: a structure that is missed altogether counts with Dice 0, surface Dice 0 and the diagonal of the square as
its distance; it never drops out of a mean. Images without the structure are told by `specificity`: the share of them
without a predicted pixel. Distances are in mm where the spacing of every image is known, else in pixels of the stored
square, and the name of the metric says which. `pooled_dice` and `pooled_iou` are those of mmsegmentation and BenchX (as
shares, not rounded): all pixels of the set together, and the mean of the structure's value and the background's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.overlap import dice, iou
from medvlp.metrics.scoring import OutcomeScoring, Score
from medvlp.metrics.surface import diagonal_mm, surface_scores
from medvlp.tasks.segmentation import Outlines

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from medvlp.metrics.answers import Answers
    from medvlp.metrics.bootstrap import Resamples

_ROWS = 64
"""Masks unpacked at a time."""
POOLED = {"pooled_dice": dice, "pooled_iou": iou}


def mask_counts(outlines: Outlines) -> Int[np.ndarray, "m 3"]:
    """Return for each row the pixels in both masks, in the prediction and in the reference."""
    found = np.zeros((len(outlines.labels), 3), dtype=np.int64)
    for rows, reference, predicted in _unpacked(outlines):
        found[rows] = np.stack(
            [each.sum(axis=(1, 2)) for each in (reference & predicted, predicted, reference)], axis=1
        )
    return found


class SegmentationScoring(OutcomeScoring[Outlines]):
    """Mean over images of overlap and surface scores, and overlap of all pixels pooled."""

    metrics: ClassVar[tuple[str, ...]] = (
        *("dice", "iou", "hd95_mm", "hd95_pixels", "nsd_mm", "nsd_pixels", "specificity"),
        *POOLED,
    )

    shares: ClassVar[frozenset[str]] = frozenset({"dice", "iou", "nsd_mm", "nsd_pixels", "specificity"})

    def __init__(self) -> None:
        self._of: Outlines | None = None
        self._found: dict[str, np.ndarray] = {}

    def read(self, frame: pd.DataFrame) -> Outlines:
        """See `Scoring.read`."""
        return Outlines.from_frame(frame)

    def outcomes(self, predictions: Outlines, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`; computed once for the predictions that were asked for last."""
        if self._of is not predictions:
            self._of, self._found = predictions, _outcomes(predictions)
        return self._found

    def answers(self, metric: str, predictions: Outlines, thresholds: Mapping[str, float]) -> Answers | None:
        """See `Scoring.answers`; pooled pixels are no answer of one image, and there are none."""
        return None if metric in POOLED else super().answers(metric, predictions, thresholds)

    def scores(self, predictions: Outlines, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`."""
        rows = super().scores(predictions, thresholds)
        names = [*predictions.label_names, "macro"]
        counts = _asked(predictions).sum(axis=0).tolist()
        numbers = [*counts, len(set(predictions.sample_ids))]
        for metric, values in _pooled(predictions, np.ones((1, len(predictions.labels)))).items():
            rows += [
                Score(metric, name, float(value), n, n)
                for name, value, n in zip(names, values[0], numbers, strict=True)
            ]
        return rows

    def resampled(
        self, predictions: Outlines, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        found = super().resampled(predictions, resamples, thresholds)
        weights = resamples.counts.astype(np.float64)
        return found | _pooled(predictions, weights, resamples.patient_of_sample)


def _outcomes(predictions: Outlines) -> dict[str, Float[np.ndarray, "m k"]]:
    counts, asked = mask_counts(predictions), _asked(predictions)
    there = counts[:, 2] > 0
    values = {"dice": dice(counts, "left_out"), "iou": iou(counts, "left_out")}
    known = bool(np.isfinite(predictions.spacing_mm).all())
    unit = "mm" if known else "pixels"
    surface = _surfaces(predictions, there, known)
    values |= {f"hd95_{unit}": surface[:, 0], f"nsd_{unit}": surface[:, 1]}
    values["specificity"] = np.where(there, np.nan, counts[:, 1] == 0)
    return {metric: np.where(asked, value[:, None], np.nan) for metric, value in values.items()}


def _surfaces(predictions: Outlines, there: np.ndarray, known: bool) -> Float[np.ndarray, "m 2"]:
    """Return 95th percentile of the Hausdorff distance, and surface Dice, of the rows with the structure."""
    found = np.full((len(there), 2), np.nan)
    tolerance = predictions.tolerance[0 if known else 1]
    for rows, reference, predicted in _unpacked(predictions):
        for i in np.flatnonzero(there[rows]):
            spacing = predictions.spacing_mm[rows.start + i].tolist() if known else [1.0, 1.0]
            missed = diagonal_mm(reference[i].shape, spacing)
            one = surface_scores(predicted[i], reference[i], spacing, tolerance, missed_mm=missed)
            found[rows.start + i] = one.hd95, one.nsd
    return found


def _pooled(
    predictions: Outlines, weights: Float[np.ndarray, "r p"], group: Int[np.ndarray, " m"] | None = None
) -> dict[str, Float[np.ndarray, "r k+1"]]:
    """Return pooled overlap of each label and its macro mean, rows weighted; `group` is the column of each row."""
    counts, pixels = mask_counts(predictions), predictions.side**2
    outside = pixels - counts[:, 1:]
    background = np.column_stack([pixels - counts[:, 1] - counts[:, 2] + counts[:, 0], outside])
    both = np.stack([background, counts], axis=1).astype(np.float64)  # [m 2 3]
    asked = _asked(predictions)
    found = {metric: np.full((len(weights), asked.shape[1] + 1), np.nan) for metric in POOLED}
    for k in np.flatnonzero(asked.any(axis=0)):
        rows = np.flatnonzero(asked[:, k])
        places = rows if group is None else group[rows]
        sums = np.zeros((weights.shape[1], 6))
        np.add.at(sums, places, both[rows].reshape(-1, 6))
        totals = (weights @ sums).reshape(-1, 2, 3)
        for metric, overlap in POOLED.items():
            each = np.where(totals[..., 1] + totals[..., 2] > 0, overlap(totals, "scored"), np.nan)
            shown = ~np.isnan(each)
            number = shown.sum(axis=1)
            found[metric][:, k] = np.where(
                number > 0, np.where(shown, each, 0).sum(axis=1) / np.maximum(number, 1), np.nan
            )
    for values in found.values():
        counted = asked.any(axis=0)
        values[:, -1] = values[:, :-1][:, counted].mean(axis=1) if counted.any() else np.nan
    return found


def _asked(predictions: Outlines) -> np.ndarray:
    """Return `[m k]`: which label each row is of."""
    labels, names = (np.asarray(each, dtype=object) for each in (predictions.labels, predictions.label_names))
    return labels[:, None] == names


def _unpacked(outlines: Outlines) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield rows, their references and their predictions."""
    for start in range(0, len(outlines.labels), _ROWS):
        rows = slice(start, min(start + _ROWS, len(outlines.labels)))
        yield rows, *outlines.masks(rows)
