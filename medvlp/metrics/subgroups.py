"""Scores of subgroups of patients, and how far they lie apart.

Guarantee: the interval of a gap is that of the difference itself, both groups in the same resamples of patients, and
not a matter of whether two intervals overlap. Every group is there: one too small to say much is marked, and never the
reference; samples whose group is not known are a group of their own. There is no mean over labels: a group without
positives of a label would be compared with others over different labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.intervals import Interval, interval
from medvlp.metrics.scoring import patient_counts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from medvlp.metrics.answers import Answers

NOT_KNOWN = "not known"
AGE_BANDS = (18, 40, 60, 80)
"""Years at which the bands of age begin; the first begins at birth."""
FEW_PATIENTS, FEW_OF_A_CLASS = 30, 10
"""A group with fewer patients, or fewer with one of the classes that the metric needs, is marked as small."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group's score of one label, and its gap, group minus reference."""

    name: str
    label: str
    samples: int
    patients: int
    support: int | None
    """Patients with the rarer of the classes that the metric needs; None for a metric that needs none."""
    value: float
    bounds: Interval
    small: bool
    reference: str | None
    """The largest group that is neither small nor unknown; None where there is none."""
    gap: float
    """0 for the reference itself, NaN without one."""
    gap_bounds: Interval


@dataclass(frozen=True)
class _Part:
    """A group in numbers: one column per label."""

    samples: np.ndarray
    patients: np.ndarray
    support: np.ndarray | None
    value: Float[np.ndarray, " k"]
    resampled: Float[np.ndarray, "r k"]
    jackknife: Float[np.ndarray, "g k"]

    def small(self, column: int) -> bool:
        rare = self.support is not None and self.support[column] < FEW_OF_A_CLASS
        return bool(rare or self.patients[column] < FEW_PATIENTS)


def age_bands(years: Float[np.ndarray, " n"]) -> list[str]:
    """Return the band of each age: `under 18`, `18 to 39`, ..., `80 and over`, or `not known`."""
    first, last = AGE_BANDS[0], AGE_BANDS[-1]
    middle = [f"{low} to {high - 1}" for low, high in itertools.pairwise(AGE_BANDS)]
    names = [f"under {first}", *middle, f"{last} and over", NOT_KNOWN]
    # NaN sorts behind every number.
    return [names[i] for i in np.searchsorted([*AGE_BANDS, np.inf], np.asarray(years, dtype=np.float64), side="right")]


def subgroups(
    answers: Sequence[Answers], groups: Sequence[str], resamples: Resamples, alpha: float = 0.05
) -> list[Group]:
    """Return every group's score and gap, label by label; over several cells the mean of them.

    Args:
        answers: Of an encoder's seeds and draws, on the same rows; one for a single cell.
        groups: Group of each row.
        resamples: Of the patients of these rows.
        alpha: One minus the coverage of intervals.
    """
    of = np.asarray(groups, dtype=str)
    jackknife = Resamples.jackknife(answers[0].patient_ids)
    names = sorted(set(of.tolist()), key=lambda name: (name == NOT_KNOWN, name))
    parts = {name: _part(answers, of == name, resamples, jackknife) for name in names}
    found = []
    for column, label in enumerate(answers[0].label_names):
        eligible = [name for name in names if name != NOT_KNOWN and not parts[name].small(column)]
        reference = max(eligible, key=lambda name: parts[name].patients[column], default=None)
        for name in names:
            found.append(_group(name, label, column, parts[name], reference, parts.get(reference or ""), alpha))
    return found


def _part(
    answers: Sequence[Answers], kept: Bool[np.ndarray, " n"], resamples: Resamples, jackknife: Resamples
) -> _Part:
    own = [one.among(kept) for one in answers]
    counted = ~np.isnan(own[0].answers) & ~np.isnan(own[0].truth)
    carriers = own[0].carriers
    return _Part(
        samples=counted.sum(axis=0),
        patients=patient_counts(own[0].patient_ids, counted),
        support=None if carriers is None else patient_counts(own[0].patient_ids, *carriers),
        value=np.mean([one.on_all()[:-1] for one in own], axis=0),
        resampled=np.mean([one.values(resamples)[:, :-1] for one in own], axis=0),
        jackknife=np.mean([one.values(jackknife)[:, :-1] for one in own], axis=0),
    )


def _group(
    name: str, label: str, column: int, part: _Part, reference: str | None, other: _Part | None, alpha: float
) -> Group:
    value = float(part.value[column])
    support = None if part.support is None else int(part.support[column])
    resampled, jackknife = part.resampled[:, column], part.jackknife[:, column]
    gap, gap_bounds = float("nan"), Interval.unknown()
    if name == reference:
        gap, gap_bounds = 0.0, Interval(0.0, 0.0)
    elif other is not None:
        gap = value - float(other.value[column])
        gap_bounds = interval(
            gap, resampled - other.resampled[:, column], jackknife - other.jackknife[:, column], alpha
        )
    return Group(
        name=name,
        label=label,
        samples=int(part.samples[column]),
        patients=int(part.patients[column]),
        support=support,
        value=value,
        bounds=interval(value, resampled, jackknife, alpha, support),
        small=part.small(column),
        reference=reference,
        gap=gap,
        gap_bounds=gap_bounds,
    )
