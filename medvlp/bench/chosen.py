"""Which test images stand for a classification.

Guarantee: a function of the samples alone: positives and negatives of every label in turn, each patient once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medvlp.tasks.base import Samples

MOST = 24


def choose(samples: Samples, most: int = MOST) -> list[int]:
    """Return positions of samples: label by label, a positive and a negative in turn, each patient once."""
    queues = [
        np.flatnonzero(samples.labels[:, k] == value).tolist()
        for k in range(samples.labels.shape[1])
        for value in (1.0, 0.0)
    ]
    chosen: list[int] = []
    patients: set[str] = set()
    while len(chosen) < most and any(queues):
        for queue in queues:
            while queue and samples.patient_ids[queue[0]] in patients:
                queue.pop(0)
            if queue and len(chosen) < most:
                chosen.append(queue.pop(0))
                patients.add(samples.patient_ids[chosen[-1]])
    return chosen
