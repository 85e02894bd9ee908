"""Scores of answers to questions: accuracy over all, closed and open questions, and what training could not know.

Guarantee: an answer is right where it is the reference, case, blanks and a last full stop aside. Chance is the accuracy
of the answer that training saw most for the kind of question, whatever the image; questions whose answer training never
saw count as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.vqa import Replies

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

ACCURACY, CLOSED, OPEN, UNSEEN = "accuracy", "accuracy_closed", "accuracy_open", "unseen_answers"


class VqaScoring(OutcomeScoring[Replies]):
    """Accuracy, and the share of questions whose answer is not among the training answers."""

    metrics: ClassVar[tuple[str, ...]] = (ACCURACY, CLOSED, OPEN, UNSEEN)
    shares: ClassVar[frozenset[str]] = frozenset(metrics)

    def read(self, frame: pd.DataFrame) -> Replies:
        """See `Scoring.read`."""
        return Replies.from_frame(frame)

    def outcomes(self, predictions: Replies, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`; `unseen_answers` is 1 where training never saw the answer."""
        unseen = ~np.array(predictions.seen, bool).reshape(-1, 1)
        return _by_sort(predictions, _equal(predictions.given, predictions.answers)) | {UNSEEN: unseen.astype(float)}

    def chances(self, predictions: Replies) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.chances`."""
        return _by_sort(predictions, _equal(predictions.usual, predictions.answers))


def _equal(one: object, other: object) -> Float[np.ndarray, "n 1"]:
    same = np.array(one, dtype=object) == np.array(other, dtype=object)
    return np.asarray(same, dtype=float).reshape(-1, 1)


def _by_sort(predictions: Replies, right: Float[np.ndarray, "n 1"]) -> dict[str, np.ndarray]:
    closed = np.array(predictions.closed, bool).reshape(-1, 1)
    return {ACCURACY: right, CLOSED: np.where(closed, right, np.nan), OPEN: np.where(closed, np.nan, right)}
