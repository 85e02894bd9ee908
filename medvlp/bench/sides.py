"""One side of a paired comparison: a cell and what a test needs of its predictions.

Guarantee: predictions are read when a pair first asks for them, and of AUROC no more is kept than what each patient
adds to it, so that all cells of a setting fit into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medvlp.bench.cells import PREDICTIONS, STAMP
from medvlp.bench.kept import read_predictions
from medvlp.bench.scored import MACRO
from medvlp.metrics.answers import Answers
from medvlp.metrics.classification import both_classes
from medvlp.metrics.delong import auroc_influence
from medvlp.metrics.scoring import SCORINGS

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished

AUROC = "auroc"


@dataclass(frozen=True)
class Read:
    """What a test needs of one cell's predictions: of AUROC what each patient adds to it, else the answers."""

    digest: str
    """Equal where two cells answer the same samples with the same truth."""
    influence: dict[str, np.ndarray]
    """Label -> `[p]`, `macro` too; without labels of which one patient carries a class."""
    answers: Answers | None


class Side:
    """One cell; its predictions are read when a pair first asks for them."""

    def __init__(self, cell: Finished, metric: str) -> None:
        self.cell, self.metric = cell, metric

    @cached_property
    def read(self) -> Read | None:
        """None where the kind of task has no such tests."""
        answers = self.answers()
        if answers is None:
            return None
        digest = hashlib.sha256("\n".join(map(str, answers.sample_ids)).encode())
        digest.update(np.nan_to_num(answers.truth, nan=-2).tobytes())
        if self.metric == AUROC:
            return Read(digest.hexdigest(), _influence(answers), None)
        return Read(digest.hexdigest(), {}, answers)

    def answers(self) -> Answers | None:
        """Read the predictions in the form that tests need."""
        frame = read_predictions(self.cell, PREDICTIONS, unstamped=True)
        kind = frame.attrs.get(STAMP, {}).get("kind")
        if kind is None:
            return None
        scoring = SCORINGS.get(kind)()
        thresholds = {
            name: np.nan if value is None else float(value) for name, value in self.cell.result["thresholds"].items()
        }
        return scoring.answers(self.metric, scoring.read(frame), thresholds)

    @property
    def exchangeable(self) -> Answers:
        """The answers, for a cell whose kind of task has such tests; those of AUROC are read anew."""
        found = (self.read.answers if self.read else None) or self.answers()
        if found is None:
            raise ValueError("this kind of task has no answers to exchange")
        return found

    def bounds(self, label: str) -> tuple[float, float]:
        """Return the interval of the cell's own score."""
        rows = self.cell.result["scores"]
        row = next(row for row in rows if (row["metric"], row["label"]) == (self.metric, label))
        low, high = (np.nan if row[key] is None else float(row[key]) for key in ("low", "high"))
        return low, high


def _influence(answers: Answers) -> dict[str, np.ndarray]:
    patients = np.unique(np.asarray(answers.patient_ids, dtype=str), return_inverse=True)[1]
    counted = both_classes(answers.truth)
    found: dict[str, np.ndarray] = {}
    for k in np.flatnonzero(counted).tolist():
        with contextlib.suppress(ValueError):  # one patient carries a class
            found[answers.label_names[k]] = auroc_influence(answers.truth[:, k], answers.answers[:, k], patients)[1][
                :, 0
            ]
    if len(found) == counted.sum() > 0:
        found[MACRO] = np.mean(list(found.values()), axis=0)
    return found
