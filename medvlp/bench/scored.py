"""Every score of kept predictions with its interval, and the values that intervals of means and differences need.

Guarantee: rows and values follow from the predictions, the thresholds, the data set's name and the bootstrap settings
alone; whoever computes them again gets the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.classification import RAISED_BY_NOISE
from medvlp.metrics.intervals import Interval, interval

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from medvlp.config.finetune import FinetuneConfig
    from medvlp.config.suite import SuiteConfig
    from medvlp.metrics.scoring import Score, Scoring
    from medvlp.tasks.base import Kept

MACRO = "macro"
JACKKNIFE = "jackknife:"
"""What stands before a metric's name for its values without each patient in turn."""


@dataclass(frozen=True)
class Scored:
    """Rows of `result.json`, and arrays of `bootstrap.npz`: metric -> `[r k+1]`, `jackknife:<metric>` -> `[g k+1]`."""

    rows: list[dict[str, Any]]
    arrays: dict[str, Float[np.ndarray, "r k+1"]]
    patients: int


def scored(
    scoring: Scoring[Any],
    predictions: Kept,
    thresholds: Mapping[str, float],
    dataset: str,
    suite: SuiteConfig | FinetuneConfig,
) -> Scored:
    """Score predictions by every metric of a rule.

    Args:
        scoring: The rule.
        predictions: Kept predictions of the test split.
        thresholds: Chosen on validation.
        dataset: Its patients are resampled alike in all tasks.
        suite: Resamples, seed and coverage.
    """
    resamples = Resamples.draw(predictions.patient_ids, suite.bootstrap_resamples, suite.bootstrap_seed, dataset)
    values = scoring.resampled(predictions, resamples, thresholds)
    jackknife = scoring.resampled(predictions, Resamples.jackknife(predictions.patient_ids), thresholds)
    support = scoring.support(predictions, thresholds)
    columns = [*predictions.label_names, MACRO]
    rows = []
    for score in scoring.scores(predictions, thresholds):
        metric, column = score.metric, columns.index(score.label)
        carried = int(support[metric][column]) if metric in support else None
        drawn, without = (found[metric][:, column] for found in (values, jackknife))
        bounds = interval(score.value, drawn, without, suite.alpha, carried, metric in RAISED_BY_NOISE)
        rows.append(_row(score, bounds, carried))
    return Scored(rows, values | {JACKKNIFE + metric: found for metric, found in jackknife.items()}, resamples.patients)


def _row(score: Score, bounds: Interval, support: int | None) -> dict[str, Any]:
    return {
        "metric": score.metric,
        "label": score.label,
        "value": score.value,
        "low": bounds.low,
        "high": bounds.high,
        "n": score.n,
        "positives": score.positives,
        "support": support,
        "left_out": bounds.left_out,
        "chance": score.chance,
    }
