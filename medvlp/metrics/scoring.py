"""How the kept predictions of a kind of task become scores with intervals.

Guarantee: every score, its bootstrap values and its chance level follow from the predictions alone; all kinds of task
share the resamples of patients. A score that has nothing to be computed from is NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from medvlp.registry import Registry

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int

    from medvlp.metrics.answers import Answers
    from medvlp.metrics.bootstrap import Resamples
    from medvlp.tasks.base import Kept

P = TypeVar("P", bound="Kept")
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Score:
    """One number with what is needed to judge it."""

    metric: str
    label: str
    """Name of the label, or `macro`."""
    value: float
    n: int
    """Samples that enter the score; for `macro` samples that enter that of at least one label."""
    positives: int
    """Positive labels among them, over all labels for `macro`."""
    chance: float = NAN
    """What an answer drawn at random gets, where that depends on the data; NaN where it is not known."""


class Scoring(ABC, Generic[P]):
    """The metrics of one kind of predictions. Columns are the labels of the predictions, then their macro mean."""

    code_version: ClassVar[int] = 1
    """Rises with every change of code that can move a score; kept predictions are then scored again."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of all scores in the order of tables; the first one leads and is compared between encoders."""

    @abstractmethod
    def read(self, frame: pd.DataFrame) -> P:
        """Return the predictions of a kept table."""

    def thresholds(self, validation: P) -> dict[str, float]:
        """Return label -> threshold, chosen on validation predictions; empty where no metric needs one."""
        return {}

    @abstractmethod
    def scores(self, predictions: P, thresholds: Mapping[str, float]) -> list[Score]:
        """Return every metric for every label and as macro mean, metric by metric."""

    @abstractmethod
    def resampled(
        self, predictions: P, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """Return every metric in every resample of patients."""

    def support(self, predictions: P, thresholds: Mapping[str, float]) -> dict[str, Int[np.ndarray, " k+1"]]:
        """Return the patients that carry each score, for the metrics that are shares of something, from 0 to 1.

        Of a metric that needs both classes it is the patients of the rarer one; of the macro mean the fewest of any
        label. It bounds the interval of a score without a mistake, or without a hit.
        """
        return {}

    def answers(self, metric: str, predictions: P, thresholds: Mapping[str, float]) -> Answers | None:
        """Return the predictions in the form that permutation tests and subgroups need; None where there is none."""
        return None


SCORINGS: Registry[Scoring[Any]] = Registry(
    "scoring rule",
    "medvlp.metrics",
    "medvlp.metrics.scoring:Scoring",
    "medvlp.metrics",
    helpers=(
        "answers",
        "benchx",
        "bootstrap",
        "calibration",
        "clinical",
        "comparison",
        "components",
        "ct_clip",
        "decision",
        "delong",
        "exchange",
        "intervals",
        "overlap",
        "ranking",
        "report",
        "scoring",
        "subgroups",
        "surface",
    ),
)
"""Name of a scoring rule, as a task names it -> its class."""


class OutcomeScoring(Scoring[P]):
    """Metrics that are the mean, or the median, of one outcome per sample and label."""

    medians: ClassVar[frozenset[str]] = frozenset()
    """Metrics that are medians; all others are means."""
    shares: ClassVar[frozenset[str]] = frozenset()
    """Metrics that are means of outcomes from 0 to 1."""

    @abstractmethod
    def outcomes(self, predictions: P, thresholds: Mapping[str, float]) -> dict[str, Float[np.ndarray, "n k"]]:
        """Return metric -> outcome of every sample and label, NaN where a sample does not enter a label's score."""

    def chances(self, predictions: P) -> dict[str, Float[np.ndarray, "n k"]]:
        """Return metric -> expected outcome of an answer drawn at random, for the metrics that have one."""
        return {}

    def scores(self, predictions: P, thresholds: Mapping[str, float]) -> list[Score]:
        """See `Scoring.scores`; the macro mean is over the labels with a sample."""
        chances = self.chances(predictions)
        rows = []
        for metric, outcome in self.outcomes(predictions, thresholds).items():
            values = self._centres(metric, outcome)
            chance = self._centres(metric, chances[metric]) if metric in chances else np.full(len(values), NAN)
            known = ~np.isnan(outcome)
            counts = [*known.sum(axis=0).tolist(), int(known.any(axis=1).sum())]
            rows += [
                Score(metric, name, float(value), n, n, float(level))
                for name, value, n, level in zip(
                    [*predictions.label_names, "macro"], values, counts, chance, strict=True
                )
            ]
        return rows

    def resampled(
        self, predictions: P, resamples: Resamples, thresholds: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, "r k+1"]]:
        """See `Scoring.resampled`."""
        return {
            metric: _with_macro(
                (_resampled_medians if metric in self.medians else _resampled_means)(outcome, resamples),
                ~np.isnan(outcome).all(axis=0),
            )
            for metric, outcome in self.outcomes(predictions, thresholds).items()
        }

    def support(self, predictions: P, thresholds: Mapping[str, float]) -> dict[str, Int[np.ndarray, " k+1"]]:
        """See `Scoring.support`."""
        found = self.outcomes(predictions, thresholds)
        shares = self.shares & found.keys()
        return {metric: patient_counts(predictions.patient_ids, ~np.isnan(found[metric])) for metric in shares}

    def answers(self, metric: str, predictions: P, thresholds: Mapping[str, float]) -> Answers | None:
        """See `Scoring.answers`: the outcomes."""
        from medvlp.metrics.answers import Answers

        centres = _resampled_medians if metric in self.medians else _resampled_means

        def resampled(truth: np.ndarray, answers: np.ndarray, resamples: Resamples) -> np.ndarray:
            return _with_macro(centres(answers, resamples), ~np.isnan(answers).all(axis=0))

        outcome = self.outcomes(predictions, thresholds)[metric]
        rows = predictions.sample_ids, predictions.patient_ids, predictions.label_names
        carriers = (~np.isnan(outcome),) if metric in self.shares else None
        return Answers(*rows, np.zeros_like(outcome), outcome, resampled, carriers)

    def _centres(self, metric: str, outcome: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k+1"]:
        columns = [column[~np.isnan(column)] for column in outcome.T]
        centre = np.median if metric in self.medians else np.mean
        values = np.array([centre(column) if len(column) else NAN for column in columns])
        return _with_macro(values[None], ~np.isnan(values))[0]


def _with_macro(values: Float[np.ndarray, "r k"], counted: Bool[np.ndarray, " k"]) -> Float[np.ndarray, "r k+1"]:
    """Add the mean over the counted labels, NaN in a resample in which one of them has no value."""
    chosen = values[:, counted]
    macro = chosen.mean(axis=1, keepdims=True) if chosen.shape[1] else np.full((len(values), 1), NAN)
    return np.concatenate([values, macro], axis=1)


def _resampled_means(outcome: Float[np.ndarray, "n k"], resamples: Resamples) -> Float[np.ndarray, "r k"]:
    known = ~np.isnan(outcome)
    sums = np.zeros((2, resamples.patients, outcome.shape[1]))
    np.add.at(sums[0], resamples.patient_of_sample, np.where(known, outcome, 0.0))
    np.add.at(sums[1], resamples.patient_of_sample, known)
    total, count = (resamples.counts.astype(np.float64) @ part for part in sums)
    return np.divide(total, count, out=np.full_like(total, NAN), where=count > 0)


def _resampled_medians(outcome: Float[np.ndarray, "n k"], resamples: Resamples) -> Float[np.ndarray, "r k"]:
    """Return the median of each label's outcomes, each repeated as often as its patient stands in the resample."""
    values = np.full((len(resamples.counts), outcome.shape[1]), NAN)
    for k, column in enumerate(outcome.T):
        order = np.argsort(column, kind="stable")[: int((~np.isnan(column)).sum())]
        if not len(order):
            continue
        ranked, patients = column[order], resamples.patient_of_sample[order]
        for rows, counts in resamples.blocks():
            running = np.cumsum(counts[:, patients], axis=1)
            total = running[:, -1:]
            # The two middle places of the repeated outcomes, one and the same where their number is odd.
            lower, upper = (
                ranked[np.minimum((running <= place).sum(axis=1), len(ranked) - 1)]
                for place in ((total - 1) // 2, total // 2)
            )
            values[rows, k] = np.where(total[:, 0] > 0, (lower + upper) / 2, NAN)
    return values


def patient_counts(patient_ids: Sequence[str], *counted: Bool[np.ndarray, "n k"]) -> Int[np.ndarray, " k+1"]:
    """Return for each label the patients with a sample in a mask, of several masks the fewest; last the fewest of all.

    Args:
        patient_ids: Patient of each sample.
        counted: Masks, such as the positive and the negative samples of each label.
    """
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    numbers = [[len(np.unique(patients[mask[:, k]])) for k in range(mask.shape[1])] for mask in counted]
    fewest = np.min(np.asarray(numbers, dtype=np.int64), axis=0)
    return np.append(fewest, fewest[fewest > 0].min(initial=len(patients)))
