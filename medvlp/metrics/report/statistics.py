"""All text metrics of generated reports: per sample, for all samples, and for resamples of patients.

Guarantee: a value of a resample is the metric of the samples repeated as often as their patients were drawn: BLEU and
METEOR from summed counts, CIDEr with document frequencies counted anew. Nothing here looks at a text twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.report.bleu import bleu, bleu_counts
from medvlp.metrics.report.cider import CiderCounts
from medvlp.metrics.report.meteor import meteor, meteor_counts
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.rouge import rouge_l

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.metrics.bootstrap import Resamples

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider", "cider_d")
"""Names of all text metrics, in the order of tables. `cider_d` is what papers and caption scorers call CIDEr."""


class ReportStatistics:
    """Counts of generated and reference reports from which every text metric follows.

    Args:
        pairs: Tokenised texts.
        metrics: Which of `METRICS`.
        meteor_folder: Folder with the files of METEOR; see `medvlp.metrics.report.meteor`.
    """

    def __init__(self, pairs: TextPairs, metrics: Sequence[str] = METRICS, meteor_folder: Path | None = None) -> None:
        if unknown := set(metrics) - set(METRICS):
            raise ValueError(f"unknown text metrics: {', '.join(sorted(unknown))}")
        self.pairs, self.metrics, self.meteor_folder = pairs, tuple(metrics), meteor_folder

    @cached_property
    def _bleu(self) -> Float[np.ndarray, "n 10"]:
        return bleu_counts(self.pairs)

    @cached_property
    def _meteor(self) -> Float[np.ndarray, "n 22"]:
        return meteor_counts(self.pairs, self.meteor_folder)

    @cached_property
    def _rouge(self) -> Float[np.ndarray, " n"]:
        return rouge_l(self.pairs)

    @cached_property
    def _cider(self) -> dict[str, CiderCounts]:
        return {"cider": CiderCounts(self.pairs, clipped=False), "cider_d": CiderCounts(self.pairs, clipped=True)}

    def samples(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Return every metric of every sample by itself; CIDEr with the document frequencies of all samples."""
        return {metric: self._samples(metric) for metric in self.metrics}

    def corpus(self) -> dict[str, float]:
        """Return every metric of all samples together; NaN without samples."""
        whole = np.ones((1, len(self.pairs)), dtype=np.int64)
        return {metric: float(self._weighted(metric, whole)[0]) for metric in self.metrics}

    def resampled(self, resamples: Resamples) -> dict[str, Float[np.ndarray, " r"]]:
        """Return every metric in every resample of patients, drawn for these samples in this order."""
        return {metric: self._weighted(metric, resamples.weights()) for metric in self.metrics}

    def _samples(self, metric: str) -> Float[np.ndarray, " n"]:
        if metric.startswith("bleu"):
            return bleu(self._bleu)[:, int(metric[-1]) - 1]
        if metric == "meteor":
            return meteor(self._meteor)
        return self._rouge if metric == "rouge_l" else self._cider[metric].samples()[0]

    def _weighted(self, metric: str, weights: np.ndarray) -> Float[np.ndarray, " r"]:
        """Return a metric of each set of samples, given by how often each sample stands in it."""
        if metric.startswith("cider"):
            return self._cider[metric].corpus(weights)
        if metric == "rouge_l":
            with np.errstate(invalid="ignore"):
                return weights @ self._rouge / weights.sum(axis=1)
        if metric == "meteor":
            values = meteor(weights @ self._meteor)
        else:
            values = bleu(weights @ self._bleu)[:, int(metric[-1]) - 1]
        return np.where(weights.sum(axis=1) > 0, values, np.nan)
