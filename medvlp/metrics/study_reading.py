"""Scores of what was read of studies: how far it is off, and how far one is off without looking.

Guarantee: errors are in the unit of the measurement. `mae_gain` is taken study by study, so that its interval, by
patients, says whether reading is better than the mean of the training studies: above 0 it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.study_reading import Readings

if TYPE_CHECKING:
    import pandas as pd


class StudyReadingScoring(OutcomeScoring[Readings]):
    """Mean absolute error, its gain on the mean of the training studies, and the mean error (bias)."""

    metrics: ClassVar[tuple[str, ...]] = ("mae", "mae_gain", "bias")

    def read(self, frame: pd.DataFrame) -> Readings:
        """See `Scoring.read`."""
        return Readings.from_frame(frame)

    def outcomes(self, predictions: Readings, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`; a study without a truth does not enter."""
        error = predictions.answer - predictions.truth
        return {"mae": np.abs(error), "mae_gain": self._unseen(predictions) - np.abs(error), "bias": error}

    def chances(self, predictions: Readings) -> dict[str, np.ndarray]:
        """Return the error of the mean of the training studies, whatever the study shows."""
        return {"mae": self._unseen(predictions)}

    @staticmethod
    def _unseen(predictions: Readings) -> np.ndarray:
        return np.abs(predictions.mean - predictions.truth)
