"""Scores of heat maps of volumes: the pointing game, and how well evidence tells cells inside from cells outside.

Guarantee: a map without any difference is no answer: it gets what pointing at random gets, and an area of one half.
A cell that an encoder has not seen has less evidence than every other: what lies there is missed, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.volume_grounding import VolumeHeatMaps

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float


class VolumeGroundingScoring(OutcomeScoring[VolumeHeatMaps]):
    """Mean over volumes of the pointing game, and of the area under the curve over cells."""

    code_version: ClassVar[int] = 2
    metrics: ClassVar[tuple[str, ...]] = ("pointing", "cell_auroc")
    shares: ClassVar[frozenset[str]] = frozenset({"pointing"})

    def read(self, frame: pd.DataFrame) -> VolumeHeatMaps:
        """See `Scoring.read`."""
        return VolumeHeatMaps.from_frame(frame)

    def outcomes(self, predictions: VolumeHeatMaps, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`."""
        pairs = list(zip(predictions.maps, predictions.inside, strict=True))
        values = {
            "pointing": np.array([pointing(*pair) for pair in pairs]),
            "cell_auroc": np.array([cell_auroc(*pair) for pair in pairs]),
        }
        return {metric: np.where(_asked(predictions), value[:, None], np.nan) for metric, value in values.items()}

    def chances(self, predictions: VolumeHeatMaps) -> dict[str, np.ndarray]:
        """Return the share of the cells inside, which is what pointing at random gets."""
        share = predictions.inside.reshape(len(predictions.findings), -1).mean(axis=1)
        return {"pointing": np.where(_asked(predictions), share[:, None], np.nan)}


def pointing(cells: Float[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"]) -> float:
    """Return whether the cell with most evidence lies inside; of several such cells the share that does."""
    known = np.isfinite(cells)
    if not known.any():
        return 0.0
    largest = known & (cells == cells[known].max())
    return float((largest & inside).sum() / largest.sum())


def cell_auroc(cells: Float[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"]) -> float:
    """Return the chance that a cell inside has more evidence than one outside, ties half; NaN without either."""
    from scipy.stats import rankdata

    number = int(inside.sum())
    if number in (0, inside.size):
        return float("nan")
    ranks = rankdata(np.where(np.isfinite(cells), cells, -np.inf).ravel())
    return float((ranks[inside.ravel()].sum() - number * (number + 1) / 2) / (number * (inside.size - number)))


def _asked(predictions: VolumeHeatMaps) -> np.ndarray:
    findings, names = (np.asarray(each, dtype=object) for each in (predictions.findings, predictions.label_names))
    return findings[:, None] == names
