"""What an encoder answered, in the form in which answers are exchanged between encoders or looked at group by group.

Guarantee: `metric` on all rows is the score of the predictions that the answers were made from. Scores whose scale is
an encoder's own stand as ranks (Bandos, Rockette and Gur 2005, for ROC curves): an exchange then tests the metric, not
the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvlp.metrics.bootstrap import Resamples

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Answers:
    """One row per answer, and how a metric follows from rows.

    Args:
        sample_ids: Sample of each row; two encoders are compared where these are the same, in the same order.
        patient_ids: Patient of each row.
        label_names: What is scored one by one, and then as macro mean.
        truth: What belongs to a row whoever answers, NaN where a label does not count.
        answers: The encoder's, NaN where a label does not count.
        metric: Returns the metric of each label, then the macro mean, in every resample of rows.
        carriers: For a metric that is a share, the samples of which it needs one or more, of each class that it needs.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    truth: Float[np.ndarray, "n k"]
    answers: Float[np.ndarray, "n k"]
    metric: Callable[[Float[np.ndarray, "m k"], Float[np.ndarray, "m k"], Resamples], Float[np.ndarray, "r k+1"]]
    carriers: tuple[Bool[np.ndarray, "n k"], ...] | None = None

    def among(self, kept: Bool[np.ndarray, " n"]) -> Answers:
        """Return the answers of which only some rows count."""
        outside = ~kept[:, None]
        return replace(
            self,
            truth=np.where(outside, np.nan, self.truth),
            answers=np.where(outside, np.nan, self.answers),
            carriers=None if self.carriers is None else tuple(mask & kept[:, None] for mask in self.carriers),
        )

    def values(self, resamples: Resamples) -> Float[np.ndarray, "r k+1"]:
        """Return the metric in every resample of patients."""
        return self.metric(self.truth, self.answers, resamples)

    def on_all(self) -> Float[np.ndarray, " k+1"]:
        """Return the metric on all rows that count."""
        patients = np.unique(np.asarray(self.patient_ids, dtype=str), return_inverse=True)[1]
        once = np.ones((1, int(patients.max(initial=-1)) + 1), dtype=np.int32)
        return self.values(Resamples(once, patients))[0]


def ranks_within(scores: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return each label's scores as shares of their ranks among the samples that count, ties in the middle."""
    ranks = np.full(scores.shape, np.nan)
    for k in range(scores.shape[1]):
        known = ~np.isnan(labels[:, k])
        ranks[known, k] = stats.rankdata(scores[known, k]) / max(int(known.sum()), 1)
    return ranks
