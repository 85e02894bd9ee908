"""Scores of retrieval between images and texts: recall at k and the median rank, in both directions.

Guarantee: ties count by expectation: equal candidates stand in random order, so that vectors without any difference get
exactly what chance gives, never rank 1. A query may have several right answers; the best placed one counts. Equal
wordings are one candidate. Resamples draw patients' queries; the candidates stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.retrieval import Vectors

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int

RECALL_AT = (1, 5, 10)
SIMILARITY_DECIMALS = 6
"""Cosines are rounded to this many decimals: smaller differences come from single precision, and count as ties."""
_QUERIES = 1024
"""Queries compared at a time."""


@dataclass(frozen=True)
class Places:
    """Where the best right answer of each query stands among the candidates.

    Args:
        better: Wrong candidates that are more similar to the query.
        level: Wrong candidates that are as similar.
        best: Right answers that are as similar as the best one, at least 1.
        right: Right answers.
        candidates: All candidates.
    """

    better: Float[np.ndarray, " q"]
    level: Float[np.ndarray, " q"]
    best: Float[np.ndarray, " q"]
    right: Float[np.ndarray, " q"]
    candidates: int

    @classmethod
    def of(cls, similarity: Float[np.ndarray, "q c"], right: Bool[np.ndarray, "q c"]) -> Places:
        """Compare every query with every candidate.

        Raises:
            ValueError: A query has no right answer.
        """
        if not right.any(axis=1).all():
            raise ValueError("a query has no right answer among the candidates")
        top = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        above, equal = similarity > top, similarity == top
        return cls(
            _row_sums(above & ~right),
            _row_sums(equal & ~right),
            _row_sums(equal & right),
            _row_sums(right),
            similarity.shape[1],
        )

    def by_chance(self) -> Places:
        """Return the places where all candidates are equal."""
        zeros = np.zeros_like(self.right)
        return Places(zeros, self.candidates - self.right, self.right, self.right, self.candidates)


def places_of(
    queries: Float[np.ndarray, "q d"],
    candidates: Float[np.ndarray, "c d"],
    query_keys: Int[np.ndarray, " q"],
    candidate_keys: Int[np.ndarray, " c"],
) -> Places:
    """Compare unit vectors; candidates with the key of a query are its right answers."""
    parts = []
    for start in range(0, len(queries), _QUERIES):
        rows = slice(start, start + _QUERIES)
        cosines = np.round(queries[rows] @ candidates.T, SIMILARITY_DECIMALS)
        parts.append(Places.of(cosines, query_keys[rows, None] == candidate_keys))
    better, level, best, right = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("better", "level", "best", "right")
    )
    return Places(better, level, best, right, len(candidates))


def _row_sums(table: Bool[np.ndarray, "q c"]) -> Float[np.ndarray, " q"]:
    return table.sum(axis=1).astype(np.float64)


def recall_at(places: Places, k: int) -> Float[np.ndarray, " q"]:
    """Return the probability that a right answer is among the first k, equal candidates in random order.

    Of `level + best` equal candidates the first k - better are seen: 1 - C(level, seen) / C(level + best, seen).
    """
    equal = places.level + places.best
    seen = np.clip(k - places.better, 0, equal)
    missed = np.ones_like(seen)
    for step in range(min(k, int(equal.max(initial=0)))):
        factor = np.maximum(places.level - step, 0) / np.maximum(equal - step, 1)
        missed *= np.where(step < seen, factor, 1.0)
    return 1 - missed


def precision_at(
    similarity: Float[np.ndarray, "q c"], right: Bool[np.ndarray, "q c"], k: int
) -> Float[np.ndarray, " q"]:
    """Return the expected share of right answers among the first k, equal candidates in random order.

    Where there are fewer than k candidates the share is still one of k.
    """
    if not similarity.shape[1]:
        return np.zeros(len(similarity))
    last = min(k, similarity.shape[1])
    worst = -np.partition(-similarity, last - 1, axis=1)[:, last - 1, None]
    above, equal = similarity > worst, similarity == worst
    seen = last - _row_sums(above)
    return (_row_sums(above & right) + seen * _row_sums(equal & right) / _row_sums(equal)) / k


def expected_rank(places: Places) -> Float[np.ndarray, " q"]:
    """Return the expected rank, from 1, of the best right answer, equal candidates in random order."""
    return places.better + (places.level + places.best + 1) / (places.best + 1)


class RetrievalScoring(OutcomeScoring[Vectors]):
    """Recall at 1, 5 and 10, and the median of the expected ranks; labels are the two directions."""

    metrics: ClassVar[tuple[str, ...]] = (*(f"recall_at_{k}" for k in RECALL_AT[::-1]), "median_rank")
    medians: ClassVar[frozenset[str]] = frozenset({"median_rank"})
    shares: ClassVar[frozenset[str]] = frozenset(metrics) - medians

    def read(self, frame: pd.DataFrame) -> Vectors:
        """See `Scoring.read`."""
        return Vectors.from_frame(frame)

    def outcomes(self, predictions: Vectors, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`; a study with several images asks by its report once, at its first image."""
        return self._outcomes(predictions, by_chance=False)

    def chances(self, predictions: Vectors) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.chances`."""
        return self._outcomes(predictions, by_chance=True)

    def _outcomes(self, predictions: Vectors, by_chance: bool) -> dict[str, np.ndarray]:
        found = {metric: np.full((len(predictions.texts), 2), np.nan) for metric in self.metrics}
        if not len(predictions.texts):
            return found
        wordings, first, wording = np.unique(predictions.texts, return_index=True, return_inverse=True)
        queries = np.unique(predictions.study_ids, return_index=True)[1]
        images, reports = predictions.images.astype(np.float64), predictions.reports.astype(np.float64)
        by_image = places_of(images, reports[first], wording, np.arange(len(wordings)))
        by_report = places_of(reports[first][wording[queries]], images, wording[queries], wording)
        everyone = np.arange(len(images))
        for column, (rows, places) in enumerate(((everyone, by_image), (queries, by_report))):
            chosen = places.by_chance() if by_chance else places
            for k in RECALL_AT:
                found[f"recall_at_{k}"][rows, column] = recall_at(chosen, k)
            found["median_rank"][rows, column] = expected_rank(chosen)
        return found
