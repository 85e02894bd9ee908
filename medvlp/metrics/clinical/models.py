"""Metrics of generated reports by published models, from local folders of their weights.

Guarantee: a model reads every pair once; every value of a resample of patients is the metric of its repeated samples.
A pair that a model cannot judge enters no value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.scoring import Score, Scoring
from medvlp.tasks.report_generation import Reports

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.metrics.bootstrap import Resamples

Texts = Sequence[str]
Judge = Callable[[Texts, Texts], "Float[np.ndarray, 'n 2']"]
"""Gives numerator and denominator of each pair; the value of a set is the ratio of their sums."""
RADGRAPH_LEVEL = "rg_er"
"""What of RadGraph's statements must agree: words, label, and whether there are relations ("partial")."""


def _chexbert_f1(folder: Path, device: str) -> Judge:
    from medvlp.metrics.clinical.chexbert import CheXbert
    from medvlp.metrics.clinical.findings import finding_counts

    model = CheXbert(folder, device)

    def judge(generated: Texts, references: Texts) -> Float[np.ndarray, "n 2"]:
        counts = finding_counts(model.labels(generated), model.labels(references), "present").sum(axis=1)
        return np.stack([2.0 * counts[:, 0], 1.0 * (counts[:, 1] + counts[:, 2])], axis=1)

    return judge


def _chexbert_similarity(folder: Path, device: str) -> Judge:
    from medvlp.metrics.clinical.chexbert import CheXbert, cosine

    model = CheXbert(folder, device)
    return lambda generated, references: _each(cosine(model.embeddings(generated), model.embeddings(references)))


def _radgraph_f1(folder: Path, device: str) -> Judge:
    from medvlp.metrics.clinical.radgraph import LEVELS, radgraph_counts, radgraph_f1
    from medvlp.metrics.clinical.radgraph_model import RadGraph

    model, level = RadGraph(folder, device=device), list(LEVELS).index(RADGRAPH_LEVEL)

    def judge(generated: Texts, references: Texts) -> Float[np.ndarray, "n 2"]:
        counts = radgraph_counts(model.annotations(generated), model.annotations(references))
        return _each(radgraph_f1(counts[:, level]))

    return judge


def _rate_score(folder: Path, device: str) -> Judge:
    from medvlp.metrics.clinical.ratescore import RaTEScore

    model = RaTEScore(folder, device=device)
    return lambda generated, references: _each(model.scores(generated, references))


def _green(folder: Path, device: str) -> Judge:
    from medvlp.metrics.clinical.green import Green

    model = Green(folder, device, half=device != "cpu")
    return lambda generated, references: _each(model.scores(generated, references))


def _each(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Return the parts of a mean over pairs: value and 1, both 0 where there is no value."""
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)


MODEL_METRICS: dict[str, Callable[[Path, str], Judge]] = {
    "chexbert_f1_micro": _chexbert_f1,
    "chexbert_similarity": _chexbert_similarity,
    "radgraph_f1": _radgraph_f1,
    "rate_score": _rate_score,
    "green": _green,
}
"""Metric -> what loads its model from a folder."""


class ModelScoring(Scoring[Reports]):
    """One metric of `MODEL_METRICS`.

    Args:
        metric: Its name.
        weights: Folder of the model; see the module of each.
        device: Torch device.

    Raises:
        UserError: From the first score on: a file is missing, or is that of another model.
    """

    def __init__(self, metric: str, weights: Path, device: str = "cpu") -> None:
        self.metrics = (metric,)  # type: ignore[misc]
        self.weights, self.device = weights, device
        self._read: tuple[Reports, Float[np.ndarray, "n 2"]] | None = None

    def read(self, frame: pd.DataFrame) -> Reports:
        """See `Scoring.read`."""
        return Reports.from_frame(frame)

    def scores(self, predictions: Reports, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`; there is one value for all findings together."""
        parts = self._parts(predictions)
        judged = int((parts[:, 1] > 0).sum())
        value = float(_ratio(parts.sum(axis=0)))
        return [Score(self.metrics[0], "macro", value, len(parts), judged)]

    def resampled(
        self, predictions: Reports, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        values = np.full((len(resamples.counts), len(predictions.label_names) + 1), np.nan)
        values[:, -1] = _ratio(resamples.weights() @ self._parts(predictions))
        return {self.metrics[0]: values}

    @cached_property
    def _judge(self) -> Judge:
        return MODEL_METRICS[self.metrics[0]](self.weights, self.device)

    def _parts(self, predictions: Reports) -> Float[np.ndarray, "n 2"]:
        """Ask the model, once for the predictions that were asked for last."""
        if self._read is None or self._read[0] is not predictions:
            self._read = predictions, self._judge(predictions.generated, predictions.references)
        return self._read[1]


def _ratio(sums: Float[np.ndarray, "*set 2"]) -> Float[np.ndarray, "*set"]:
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)
