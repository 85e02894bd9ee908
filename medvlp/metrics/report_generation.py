"""Scores of generated reports: what they say of fourteen findings, and how near their words are to the reference.

Guarantee: every value of a resample of patients is the metric of its repeated samples: findings, BLEU and METEOR from
summed counts, CIDEr with document frequencies counted anew. A statement that a text doubts counts as made, as in
published F1 of findings. METEOR has no value where its official files are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.metrics.clinical.findings import finding_counts, finding_scores, label_table
from medvlp.metrics.report.meteor import meteor_folder
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.statistics import METRICS as WORDS
from medvlp.metrics.report.statistics import ReportStatistics
from medvlp.metrics.scoring import Score, Scoring
from medvlp.tasks.report_generation import Reports
from medvlp.text.report_words import tokeniser

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from medvlp.metrics.bootstrap import Resamples

logger = logging.getLogger(__name__)

FINDING_METRICS = ("f1", "precision", "recall")
MICRO = "finding_f1_micro"
"""F1 of all findings together."""


class ReportScoring(Scoring[Reports]):
    """Precision, recall and F1 of findings by the rule labeler; BLEU, ROUGE-L, METEOR and CIDEr of words."""

    metrics: ClassVar[tuple[str, ...]] = (MICRO, *(f"finding_{name}" for name in FINDING_METRICS), *WORDS)

    def __init__(self) -> None:
        self._of: Reports | None = None

    def read(self, frame: pd.DataFrame) -> Reports:
        """See `Scoring.read`."""
        return Reports.from_frame(frame)

    def scores(self, predictions: Reports, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`; findings together and words have no value for single findings, only one for all."""
        self._prepare(predictions)
        samples, there = len(predictions.sample_ids), self._counts[..., 2].sum(axis=0).tolist()
        words = {metric: np.array([value]) for metric, value in self._words.corpus().items()}
        values = self._values(np.ones((1, samples), dtype=np.int64), words)
        names = [*predictions.label_names, "macro"]
        return [
            Score(metric, name, float(value), samples, positives)
            for metric in self.metrics
            for name, value, positives in zip(names, values[metric][0], [*there, sum(there)], strict=True)
            if name == "macro" or metric not in (MICRO, *WORDS)
        ]

    def resampled(
        self, predictions: Reports, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        self._prepare(predictions)
        return self._values(resamples.weights(), self._words.resampled(resamples))

    def _prepare(self, predictions: Reports) -> None:
        """Read and count the texts, once for the predictions that were asked for last."""
        if self._of is predictions:
            return
        self._counts = finding_counts(
            label_table(predictions.generated), label_table(predictions.references), "present"
        )
        split = tokeniser(predictions.words)
        generated, references = (
            [" ".join(split(text).split()) for text in texts]
            for texts in (predictions.generated, predictions.references)
        )
        self._words = ReportStatistics(TextPairs(generated, [[text] for text in references]), computable())
        self._of = predictions

    def _values(
        self, weights: Int[np.ndarray, "r n"], words: Mapping[str, Float[np.ndarray, " r"]]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """Return every metric of sets of samples, given by how often each sample stands in it, and those of words."""
        counted = self._counts[..., 2].sum(axis=0) > 0
        sums = np.einsum("rn,nkc->rkc", weights, self._counts)
        found = finding_scores(sums, counted)
        values = {f"finding_{name}": np.delete(found[name], -2, axis=1) for name in FINDING_METRICS}
        values[MICRO] = _alone(found["f1"][:, -2], len(counted))
        nothing = np.full(len(weights), np.nan)
        return values | {metric: _alone(words.get(metric, nothing), len(counted)) for metric in WORDS}


def _alone(values: Float[np.ndarray, " r"], findings: int) -> Float[np.ndarray, "r k+1"]:
    """Return a table with values in its last column."""
    table = np.full((len(values), findings + 1), np.nan)
    table[:, -1] = values
    return table


def computable() -> tuple[str, ...]:
    """Return the metrics of words that can be computed here: METEOR needs its official files."""
    try:
        meteor_folder()
    except UserError as error:
        logger.warning("METEOR has no value: %s", error.what)
        return tuple(metric for metric in WORDS if metric != "meteor")
    return WORDS
