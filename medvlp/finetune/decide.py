"""From logits to probabilities and answers: calibration and thresholds, chosen on validation.

Guarantee: nothing but validation samples is looked at. A label of which validation has too few of a class is left as
the network gives it, and that is said; a threshold is only set where validation has both classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from medvlp.finetune.notes import Note
from medvlp.metrics.calibration import STEEPEST, fit_platt, fit_temperature
from medvlp.metrics.classification import best_threshold
from medvlp.tasks._tuned import Decision

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.finetune import DecisionConfig
    from medvlp.tasks.base import Samples

LEAST_OF_A_CLASS = 5
"""Validation samples of each class below which a label is not calibrated."""
AT_ITS_END = 1.01
"""Factor within which a slope counts as one that only its bound has stopped."""
ROUNDING = 1e-6
"""Share by which a threshold lies below the score that chose it, whose last bits differ in another batch."""


def decide(
    val: Samples, logits: Float[np.ndarray, "n k"], config: DecisionConfig
) -> tuple[tuple[Decision, ...], list[Note]]:
    """Return the decision of every label, and what has to be said about them."""
    found: list[Decision] = []
    notes: list[Note] = []
    for k, name in enumerate(val.label_names):
        known = ~np.isnan(val.labels[:, k])
        labels, own = val.labels[known, k], logits[known, k]
        slope, intercept, why_not = _calibrate(labels, own, config.calibration)
        threshold = _threshold(labels, expit(slope * own + intercept), config)
        found.append(Decision(name, slope, intercept, threshold))
        if why_not:
            notes.append((f"Not calibrated, because {why_not}", name))
        if threshold is None:
            notes.append(("Without yes and no, because on validation no threshold can be chosen", name))
    return tuple(found), notes


def _calibrate(labels: Float[np.ndarray, " n"], logits: Float[np.ndarray, " n"], how: str) -> tuple[float, float, str]:
    """Return slope, intercept, and why there is none."""
    if how == "none":
        return 1.0, 0.0, ""
    few = min(int((labels == 1).sum()), int((labels == 0).sum()))
    if few < LEAST_OF_A_CLASS:
        return 1.0, 0.0, f"validation has fewer than {LEAST_OF_A_CLASS} images of a class"
    scaling = (fit_platt if how == "platt" else fit_temperature)(labels, expit(logits))
    if scaling is None or scaling.slope * STEEPEST < AT_ITS_END:
        return 1.0, 0.0, "on validation the score does not rise with the label"
    if scaling.slope * AT_ITS_END > STEEPEST:
        return 1.0, 0.0, "validation is told apart without a mistake"
    return scaling.slope, scaling.intercept, ""


def _threshold(
    labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], config: DecisionConfig
) -> float | None:
    """Return the threshold that the rule takes, a hair below the score that it is; None where there is none."""
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    if not len(positive) or not len(negative):
        return None
    levels, target = np.unique(scores), config.target or 0.0
    sensitivity = 1 - np.searchsorted(positive, levels, side="left") / len(positive)
    specificity = np.searchsorted(negative, levels, side="left") / len(negative)
    if config.threshold == "f1":
        chosen = best_threshold(labels, scores)
    elif config.threshold == "youden":
        chosen = levels[np.argmax(sensitivity + specificity)]
    elif config.threshold == "sensitivity":
        chosen = levels[np.flatnonzero(sensitivity >= target)[-1]]
    else:
        reached = np.flatnonzero(specificity >= target)
        if not len(reached):
            return None
        chosen = levels[reached[0]]
    return float(chosen) * (1 - ROUNDING)
