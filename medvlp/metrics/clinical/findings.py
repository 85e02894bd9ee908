"""Agreement of generated and reference reports on the fourteen CheXpert findings.

Guarantee: a finding counts where the report states that it is present; absent and not mentioned are both "not present".
How a doubtful statement counts is the caller's explicit choice. Scores of a set follow from the sum of its samples'
counts. A finding that no reference has scores NaN and is not in the macro mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvlp.text.labeler import FINDINGS, label_report
from medvlp.types import PRESENT, UNCERTAIN

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Uncertain = Literal["present", "absent", "left_out"]
"""Doubtful statements: as present (F1-CheXbert), as absent (positive F1 of CheXbert's authors), or the sample does not
count for that finding where either report doubts it."""
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The findings of the CheXpert competition, over which a second micro and macro mean is common."""
METRICS = ("precision", "recall", "f1")


def label_table(reports: Sequence[str]) -> Float[np.ndarray, "n 14"]:
    """Return the labels of each report by the rule labeler, in the order of `FINDINGS`."""
    rows = [label_report(report) for report in reports]
    return np.array([[row[name] for name in FINDINGS] for row in rows]).reshape(len(rows), len(FINDINGS))


def finding_counts(
    generated: Float[np.ndarray, "n k"], reference: Float[np.ndarray, "n k"], uncertain: Uncertain
) -> Int[np.ndarray, "n k 3"]:
    """Return for each sample and finding whether both reports have it, the generated one has it, the reference has it.

    Args:
        generated: Labels of the generated reports: 1, 0, -1 or NaN.
        reference: Labels of the references.
        uncertain: How -1 counts.

    Raises:
        ValueError: Tables of different shapes.
    """
    if generated.shape != reference.shape:
        raise ValueError(f"tables of labels have different shapes: {generated.shape} and {reference.shape}")
    called, there = (
        (labels == PRESENT) | ((labels == UNCERTAIN) & (uncertain == "present")) for labels in (generated, reference)
    )
    counts = np.stack([called & there, called, there], axis=-1).astype(np.int64)
    if uncertain == "left_out":
        counts[(generated == UNCERTAIN) | (reference == UNCERTAIN)] = 0
    return counts


def finding_scores(
    counts: Int[np.ndarray, "*set k 3"],
    counted: Bool[np.ndarray, " k"] | None = None,
    absent: Literal["left_out", "zero"] = "left_out",
) -> dict[str, Float[np.ndarray, "*set k+2"]]:
    """Return precision, recall and F1 of each finding, then of all together (micro), then their mean (macro).

    Args:
        counts: Sums of `finding_counts` over samples.
        counted: Findings in the macro mean; None: those that a reference of this set has. A resample that lacks one of
            them has no macro mean.
        absent: A finding that no reference has has no value and is left out, or scores 0 and counts, as in
            scikit-learn's report, on which published F1-CheXbert values rest.
    """
    counts = np.asarray(counts, dtype=np.float64)
    with_micro = np.concatenate([counts, counts.sum(axis=-2, keepdims=True)], axis=-2)
    both, called, there = (with_micro[..., i] for i in range(3))
    values = {
        "precision": _ratio(both, called),
        "recall": _ratio(both, there),
        "f1": _ratio(2 * both, called + there),
    }
    if absent == "left_out":
        values = {metric: np.where(there > 0, value, np.nan) for metric, value in values.items()}
        chosen = there[..., :-1] > 0 if counted is None else np.broadcast_to(counted, there[..., :-1].shape)
    else:
        chosen = np.ones(there[..., :-1].shape, dtype=bool)
    return {
        metric: np.concatenate([value, _macro(value[..., :-1], chosen)[..., None]], axis=-1)
        for metric, value in values.items()
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _macro(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the mean of the chosen columns; NaN without any, and where one of them is NaN."""
    total = np.where(chosen, values, 0).sum(axis=-1)
    number = chosen.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
