"""Paired permutation test: two encoders exchange their answers to all images of a patient, or they do not.

Guarantee: a patient's answers move together, for all labels at once. Under the hypothesis that the two encoders are
alike each exchange is as likely as what was seen. Where there are few patients all exchanges are gone through, else a
number of them, which follows from the seed and the number of patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.bootstrap import Resamples

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from medvlp.metrics.answers import Answers

BLOCK_ELEMENTS = 4_000_000
"""Exchanges x answers handled at once."""


def exchanges(patients: int, number: int, seed: int) -> Bool[np.ndarray, "m p"]:
    """Return which patients change sides in each exchange.

    Args:
        patients: Number of patients.
        number: Exchanges to draw; all 2^p are gone through where they are no more.
        seed: Of their draw.
    """
    if patients < 63 and 2**patients <= number:
        return (np.arange(2**patients)[:, None] >> np.arange(patients)) % 2 == 1
    return np.random.default_rng([seed, patients]).random((number, patients)) < 0.5


def exchanged_differences(
    first: Answers, second: Answers, swapped: Bool[np.ndarray, "m p"]
) -> Float[np.ndarray, "m k+1"]:
    """Return the difference first - second after each exchange.

    Args:
        first: Of one encoder.
        second: Of the other, to the same samples in the same order.
        swapped: From `exchanges`; patients in sorted order.

    Raises:
        ValueError: They did not answer the same samples.
    """
    if list(first.sample_ids) != list(second.sample_ids):
        raise ValueError("a permutation test needs answers to the same samples, in the same order")
    patient_of_sample = np.unique(np.asarray(first.patient_ids, dtype=str), return_inverse=True)[1]
    patients = swapped.shape[1]
    # Each answer belongs to a unit, a patient with one of the encoders; a side takes one of a patient's two units.
    units = np.concatenate([patient_of_sample, patient_of_sample + patients])
    truth, answers = (np.concatenate(pair) for pair in ((first.truth, second.truth), (first.answers, second.answers)))
    found = []
    for rows in _blocks(len(swapped), len(units)):
        sides = np.concatenate([~swapped[rows], swapped[rows]], axis=1).astype(np.int32)
        values = [first.metric(truth, answers, Resamples(side, units)) for side in (sides, 1 - sides)]
        found.append(values[0] - values[1])
    return np.concatenate(found)


def _blocks(number: int, size: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // max(size, 1))
    return (slice(start, start + step) for start in range(0, number, step))
