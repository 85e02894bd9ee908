"""Scores of heat maps against regions: pointing game, intersection over union, Dice.

Guarantee: pointing is at the centre of a map's strongest cell, whatever the number of cells; of several equal ones each
counts by its share, so that a map without any difference gets about the share of the square that the region covers,
which is chance. For IoU and Dice a map is enlarged bilinearly to the pixels of the stored square; their threshold is
chosen on validation maps or given, never on the maps that are scored. The rules of published grounding tests, with
their constants, stand in functions of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from medvlp.io.enlarge import to_square
from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.grounding import HeatMaps

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int

LEVELS = 100
"""Thresholds that are tried: 0, 1/100, ... of the range of a map."""
_ROWS = 64
"""Maps enlarged at a time."""


def pointing(maps: Float[np.ndarray, "m g v"], regions: Bool[np.ndarray, "m h w"]) -> Float[np.ndarray, " m"]:
    """Return whether the centre of the largest cell lies in the region; of several largest cells the share that does.

    The pointing game of Zhang et al., Top-down neural attention by excitation backprop, without its tolerance of 15
    pixels. A bilinearly enlarged map has its maximum at this place, too, but beside a cell of the border as far out as
    the edge of the image.

    Args:
        maps: Evidence on cells, or on the pixels of the regions.
        regions: Masks that the cells cover evenly.
    """
    rows, columns = (
        ((np.arange(cells) + 0.5) * pixels / cells).astype(np.intp)
        for cells, pixels in zip(maps.shape[1:], regions.shape[1:], strict=True)
    )
    inside = regions[:, rows][:, :, columns]
    largest = maps == maps.max(axis=(1, 2), keepdims=True)
    return (largest & inside).sum(axis=(1, 2)) / largest.sum(axis=(1, 2))


def unit_range(maps: Float[np.ndarray, "m h w"]) -> Float[np.ndarray, "m h w"]:
    """Return each map from 0 at its smallest to 1 at its largest value; 0 everywhere where there is no difference."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros(maps.shape), where=high > low)


def overlap(
    foreground: Bool[np.ndarray, "m h w"], regions: Bool[np.ndarray, "m h w"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return intersection over union and Dice of each pair; NaN where both are empty."""
    common = (foreground & regions).sum(axis=(1, 2)).astype(np.float64)
    total = (foreground.sum(axis=(1, 2)) + regions.sum(axis=(1, 2))).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return common / (total - common), 2 * common / total


def _best(dice: Float[np.ndarray, "m t"]) -> float:
    """Return the threshold of highest mean Dice, the lowest of equal ones; NaN without a map."""
    return float(np.argmax(np.round(dice.mean(axis=0), 12))) / LEVELS if len(dice) else float("nan")


def _dice_by_level(maps: Float[np.ndarray, "m h w"], regions: Bool[np.ndarray, "m h w"]) -> Float[np.ndarray, "m t"]:
    """Return the Dice of `unit_range(maps) > threshold` at each threshold, from one histogram a map."""
    found = np.zeros((len(maps), LEVELS))
    levels = np.arange(LEVELS) / LEVELS
    for row, (one, region) in enumerate(zip(unit_range(maps), regions, strict=True)):
        above = np.searchsorted(levels, one.reshape(-1), side="left")  # thresholds below the value
        inside = np.bincount(above[region.reshape(-1)], minlength=LEVELS + 1)
        everywhere = np.bincount(above, minlength=LEVELS + 1)
        common, foreground = (counts[::-1].cumsum()[::-1][1:] for counts in (inside, everywhere))
        found[row] = 2 * common / np.maximum(foreground + region.sum(), 1)
    return found


def attention_map(
    attention: Float[np.ndarray, "l b p"],
    anatomy: Float[np.ndarray, "l b a p"] | None = None,
    divide_by: Literal["nothing", "image", "batch"] = "image",
) -> Float[np.ndarray, "b g g"]:
    """Return heat maps from a query's cross-attention: the mean over the layers of the decoder.

    MedKLIP (divide_by="nothing"; specs of its `Sample_Zero-Shot_Grounding_RSNA`) and MeDSLIP.

    Args:
        attention: Of the finding's query, over g × g patches.
        anatomy: Of the anatomy queries (MeDSLIP): the finding's map times each of theirs, averaged over them.
        divide_by: The largest value of each image; "batch", of all images, is what MeDSLIP's code does: there a map
            depends on the images beside it.
    """
    found = attention.mean(axis=0)
    if anatomy is not None:
        found = (found[:, None] * anatomy.mean(axis=0)).mean(axis=1)
    if divide_by != "nothing":
        found = found / (found.max(axis=1, keepdims=True) if divide_by == "image" else found.max())
    side = round(found.shape[1] ** 0.5)
    return found.reshape(len(found), side, side)


@dataclass(frozen=True)
class OfficialGrounding:
    """Result of the grounding test of MedKLIP and MeDSLIP, over the images with the finding."""

    positives: int
    pointing_hits: int
    iou: Float[np.ndarray, " m"]
    dice: Float[np.ndarray, " m"]


def official_grounding(
    maps: Float[np.ndarray, "b g g"],
    boxes: Int[np.ndarray, "b 4"],
    labels: Int[np.ndarray, " b"],
    threshold: float,
    enlarge: int = 16,
) -> OfficialGrounding:
    """Score maps as the grounding tests of MedKLIP and MeDSLIP do.

    Maps are enlarged by the nearest value; foreground is above the threshold; a hit is any pixel with the largest value
    that lies in the box. Images without the finding do not count.

    Args:
        maps: See `attention_map`.
        boxes: First row, row behind the last, first column, column behind the last, on the enlarged grid.
        labels: 1 where the image has the finding.
        threshold: 0.008 in MedKLIP, 0.01 in MeDSLIP with anatomy; 0 in MeDSLIP without, where every pixel with any
            attention is foreground, so that IoU and Dice measure nothing but the box.
        enlarge: Pixels per patch.
    """
    chosen = np.flatnonzero(labels == 1)
    large = maps[chosen].repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    regions = np.zeros(large.shape, dtype=bool)
    for region, (top, bottom, left, right) in zip(regions, boxes[chosen], strict=True):
        region[top:bottom, left:right] = True
    iou, dice = overlap(large > threshold, regions)
    return OfficialGrounding(len(chosen), int((pointing(large, regions) > 0).sum()), iou, dice)


class GroundingScoring(OutcomeScoring[HeatMaps]):
    """Pointing game, and IoU and Dice at a threshold for each finding, the one of best mean Dice on validation."""

    metrics: ClassVar[tuple[str, ...]] = ("pointing", "iou", "dice")
    shares: ClassVar[frozenset[str]] = frozenset(metrics)

    def read(self, frame: pd.DataFrame) -> HeatMaps:
        """See `Scoring.read`."""
        return HeatMaps.from_frame(frame)

    def thresholds(self, validation: HeatMaps) -> dict[str, float]:
        """Return for each finding the share of a map's range above which is foreground; NaN without validation maps."""
        findings = np.asarray(validation.findings, dtype=object)
        dice = [_dice_by_level(maps, regions) for _, maps, regions in _enlarged(validation)]
        table = np.concatenate(dice) if dice else np.zeros((0, LEVELS))
        return {name: _best(table[findings == name]) for name in validation.label_names}

    def outcomes(self, predictions: HeatMaps, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`."""
        found = {
            metric: np.full((len(predictions.findings), len(predictions.label_names)), np.nan)
            for metric in self.metrics
        }
        column = {name: k for k, name in enumerate(predictions.label_names)}
        of = np.array([column[name] for name in predictions.findings], dtype=np.intp)
        level = np.array([thresholds.get(name, np.nan) for name in predictions.findings])
        for rows, maps, regions in _enlarged(predictions):
            at = (np.arange(rows.start, rows.start + len(maps)), of[rows])
            found["pointing"][at] = pointing(predictions.maps[rows], regions)
            iou, dice = overlap(unit_range(maps) > level[rows, None, None], regions)
            unknown = np.isnan(level[rows])
            found["iou"][at], found["dice"][at] = (np.where(unknown, np.nan, value) for value in (iou, dice))
        return found

    def chances(self, predictions: HeatMaps) -> dict[str, np.ndarray]:
        """Return the share of the square that each region covers, which is what pointing at random gets."""
        share = [runs.reshape(-1, 2)[:, 1].sum() / predictions.side**2 for runs in predictions.runs]
        asked = np.asarray(predictions.findings, dtype=object)[:, None] == np.asarray(
            predictions.label_names, dtype=object
        )
        return {"pointing": np.where(asked, np.asarray(share, dtype=np.float64)[:, None], np.nan)}


def _enlarged(predictions: HeatMaps) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield rows, their maps and their regions on the stored square."""
    for start in range(0, len(predictions.maps), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, to_square(predictions.maps[rows], predictions.side), predictions.regions(rows)
