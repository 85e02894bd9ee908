"""Scores of retrieval with classes: is a report of the same class among the first k, and where is the own one?

Guarantee: hits and precision agree with BenchX where its order is not left to ties, which count by expectation here.
Chance is a random order: with five equal classes a hit at 1 is 0.2 by chance, not 1 / n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.retrieval import (
    RECALL_AT,
    SIMILARITY_DECIMALS,
    Places,
    RetrievalScoring,
    precision_at,
    recall_at,
)
from medvlp.tasks.class_retrieval import ClassVectors

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.tasks.retrieval import Vectors

_QUERIES = 256
"""Queries compared at a time."""


class ClassRetrievalScoring(RetrievalScoring):
    """Hits and precision at 1, 5 and 10 by class; where both directions are asked, also those of `retrieval`."""

    metrics: ClassVar[tuple[str, ...]] = (
        *(f"hit_at_{k}" for k in RECALL_AT),
        *(f"precision_at_{k}" for k in RECALL_AT),
        *RetrievalScoring.metrics,
    )
    shares: ClassVar[frozenset[str]] = frozenset(metrics) - RetrievalScoring.medians

    def read(self, frame: pd.DataFrame) -> Vectors:
        """See `Scoring.read`."""
        return ClassVectors.from_frame(frame)

    def _outcomes(self, predictions: Vectors, by_chance: bool) -> dict[str, np.ndarray]:
        assert isinstance(predictions, ClassVectors)
        found = {
            metric: np.full((len(predictions.texts), len(predictions.label_names)), np.nan)
            for metric in self.metrics[:6]
        }
        if not len(predictions.texts):
            return found
        queries = np.unique(predictions.study_ids, return_index=True)[1]
        images, reports = predictions.images.astype(np.float64), predictions.reports.astype(np.float64)[queries]
        classes = np.unique(list(predictions.classes), return_inverse=True)[1]
        ways = ((np.arange(len(images)), images, reports, queries), (queries, reports, images, np.arange(len(images))))
        for column, (rows, asking, candidates, of) in enumerate(ways[: len(predictions.label_names)]):
            for start in range(0, len(rows), _QUERIES):
                part = slice(start, start + _QUERIES)
                similarity = np.round(asking[part] @ candidates.T, SIMILARITY_DECIMALS) * (not by_chance)
                right = classes[rows[part], None] == classes[of]
                for metric, values in _by_class(similarity, right).items():
                    found[metric][rows[part], column] = values
        if predictions.one_way:
            return found
        return super()._outcomes(predictions, by_chance) | found


def _by_class(similarity: Float[np.ndarray, "q c"], right: np.ndarray) -> dict[str, Float[np.ndarray, " q"]]:
    places = Places.of(similarity, right)
    hits = {f"hit_at_{k}": recall_at(places, k) for k in RECALL_AT}
    return hits | {f"precision_at_{k}": precision_at(similarity, right, k) for k in RECALL_AT}
