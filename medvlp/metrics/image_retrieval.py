"""Scores of retrieval of images by images: how far the findings of the first K found are those of the query.

Guarantee: without ties, and where each image has a patient of its own, the overlap is CT-CLIP's (arXiv 2403.17834) but
that a query is not in its own gallery: `ct_clip.overlap_at`. Images of the query's patient are no candidates. Ties
count by expectation, so that vectors without any difference get exactly what chance gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.metrics.retrieval import SIMILARITY_DECIMALS
from medvlp.metrics.scoring import OutcomeScoring
from medvlp.tasks.image_retrieval import FoundByImages

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

OVERLAP_AT = (1, 5, 10, 50)
_QUERIES = 256
"""Queries compared at a time."""


def expected_mean(
    similarity: Float[np.ndarray, "q c"], values: Float[np.ndarray, "q c"], k: int
) -> Float[np.ndarray, " q"]:
    """Return the expected mean value of the first k candidates, equal ones in random order.

    Args:
        similarity: Higher comes first; -inf is no candidate.
        values: Of each candidate.
        k: Of fewer candidates all count; NaN where there is none.
    """
    there = np.isfinite(similarity).sum(axis=1)
    first = np.minimum(k, there)
    ranked = -np.sort(-similarity, axis=1)
    last = np.take_along_axis(ranked, np.maximum(first - 1, 0)[:, None], axis=1)
    above, level = similarity > last, similarity == last
    seen = first - above.sum(axis=1)
    total = np.where(above, values, 0).sum(axis=1) + seen * np.where(level, values, 0).sum(axis=1) / level.sum(axis=1)
    return np.divide(total, first, out=np.full(len(total), np.nan), where=first > 0)


class ImageRetrievalScoring(OutcomeScoring[FoundByImages]):
    """Overlap of findings among the first 1, 5, 10 and 50: those of both images over those of either.

    The gallery are the images with a finding, as in CT-CLIP; an image without one asks, too, and overlaps with none.
    """

    metrics: ClassVar[tuple[str, ...]] = tuple(f"overlap_at_{k}" for k in (5, 1, 10, 50))
    shares: ClassVar[frozenset[str]] = frozenset(metrics)

    def read(self, frame: pd.DataFrame) -> FoundByImages:
        """See `Scoring.read`."""
        return FoundByImages.from_frame(frame)

    def outcomes(self, predictions: FoundByImages, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.outcomes`."""
        return self._outcomes(predictions, by_chance=False)

    def chances(self, predictions: FoundByImages) -> dict[str, np.ndarray]:
        """See `OutcomeScoring.chances`: any order of the candidates."""
        return self._outcomes(predictions, by_chance=True)

    def _outcomes(self, predictions: FoundByImages, by_chance: bool) -> dict[str, np.ndarray]:
        present = predictions.labels.astype(np.float64)
        patients = np.unique(np.asarray(predictions.patient_ids, dtype=str), return_inverse=True)[1]
        vectors = predictions.vectors.astype(np.float64)
        # A vector of zeros is as similar to every other one.
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        gallery = np.flatnonzero(present.any(axis=1))
        found = {metric: np.full((len(present), 1), np.nan) for metric in self.metrics}
        for start in range(0, len(present) if len(gallery) else 0, _QUERIES):
            part = slice(start, start + _QUERIES)
            both = present[part] @ present[gallery].T
            overlap = both / (present[part].sum(axis=1)[:, None] + present[gallery].sum(axis=1) - both)
            similarity = np.round(unit[part] @ unit[gallery].T, SIMILARITY_DECIMALS) * (not by_chance)
            similarity[patients[part, None] == patients[gallery]] = -np.inf
            for k in OVERLAP_AT:
                found[f"overlap_at_{k}"][part, 0] = expected_mean(similarity, overlap, k)
        return found
