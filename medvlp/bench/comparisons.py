"""Paired comparisons of encoders: differences with intervals, and p values corrected for their number.

Guarantee: a comparison pairs two encoders patient by patient, over the draws that both have. Of AUROC the test is
DeLong's over patients; of other metrics a permutation test in which the two exchange a patient's answers; where neither
can be made, the difference over its bootstrap standard error. Over several draws or seeds their variance is added, so
that a difference is not called shown because one draw shows it. p values are corrected over all comparisons of one
family: `macro` (one comparison per pair of encoders and setting), and `label`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.baselines import FEATURES
from medvlp.bench.scored import MACRO
from medvlp.bench.sides import AUROC, Side
from medvlp.bench.stats import RULE, columns_of, components_of, group, values_of
from medvlp.metrics.classification import RAISED_BY_NOISE
from medvlp.metrics.comparison import ROUNDING, adjusted, bootstrap_p, exchange_p, normal_p, with_components
from medvlp.metrics.exchange import exchanged_differences, exchanges
from medvlp.metrics.intervals import Interval, interval, percentile_interval

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished
    from medvlp.config.suite import Correction, SuiteConfig

DELONG, PERMUTATION, BOOTSTRAP = "DeLong over patients", "permutation of patients", "bootstrap over patients"
WITH_COMPONENTS = ", with draws and seeds as variance components"
FAMILIES = ("macro", "label")


@dataclass(frozen=True)
class Rules:
    """How pairs are tested: coverage, permutations, their seed, and the correction."""

    alpha: float = 0.05
    permutations: int = 2000
    seed: int = 0
    correction: Correction = "holm"

    @classmethod
    def of(cls, suite: SuiteConfig) -> Rules:
        """Return the rules of a suite."""
        return cls(suite.alpha, suite.permutations, suite.bootstrap_seed, suite.correction)


def compare(cells: Iterable[Finished], order: Sequence[str], rules: Rules) -> list[dict[str, Any]]:
    """Return the rows of `comparisons.json`.

    Every pair of encoders in every setting, also against the random one and against each baseline; baselines are not
    compared with each other.

    Args:
        cells: Finished cells.
        order: Encoder names; of a pair the earlier one is `a`.
        rules: Coverage, tests, correction.
    """
    rank = {name: i for i, name in enumerate(order)}
    rows: list[dict[str, Any]] = []
    for setting, encoders in by_setting(cells).items():
        sides = {name: [Side(cell, members[0].leading) for cell in members] for name, members in encoders.items()}
        names = sorted(encoders, key=lambda name: (rank.get(name, len(rank)), name))
        for a, b in itertools.combinations(names, 2):
            if not (a in FEATURES and b in FEATURES):
                rows += _pair(setting, sides[a], sides[b], rules)
    return corrected(rows, rules.correction)


def compare_two(
    cells: Iterable[Finished], a: str, b: str, rules: Rules, metric: str | None = None
) -> list[dict[str, Any]]:
    """Return the rows of one pair of encoders in all settings that both have, corrected among themselves.

    Args:
        cells: Finished cells.
        a: Name of the first encoder.
        b: Name of the second encoder.
        rules: Coverage, tests, correction.
        metric: Metric to compare; by default the leading one of each task.
    """
    rows = []
    for setting, encoders in by_setting(cells).items():
        if a in encoders and b in encoders:
            sides = [[Side(cell, metric or cell.leading) for cell in encoders[name]] for name in (a, b)]
            if metric is None or all((metric, MACRO) in values_of(side.cell) for side in itertools.chain(*sides)):
                rows += _pair(setting, sides[0], sides[1], rules)
    return corrected(rows, rules.correction)


def by_setting(cells: Iterable[Finished]) -> dict[tuple[str, str, float, int], dict[str, list[Finished]]]:
    """Return (task, protocol, fraction, shots) -> encoder -> its cells."""
    settings: dict[tuple[str, str, float, int], dict[str, list[Finished]]] = {}
    for (task, protocol, fraction, shots, encoder), members in group(cells).items():
        settings.setdefault((task, protocol, fraction, shots), {})[encoder] = members
    return settings


def corrected(rows: list[dict[str, Any]], correction: Correction) -> list[dict[str, Any]]:
    """Return the rows with their p values corrected among those of their family."""
    for family in FAMILIES:
        same = [row for row in rows if row["family"] == family]
        for row, p in zip(same, adjusted([row["p"] for row in same], correction), strict=True):
            row |= {"p_adjusted": p, "correction": correction, "comparisons": len(same)}
    return rows


def _pair(
    setting: tuple[str, str, float, int], sides_a: list[Side], sides_b: list[Side], rules: Rules
) -> list[dict[str, Any]]:
    draws = sorted({side.cell.record["draw"] for side in sides_a} & {side.cell.record["draw"] for side in sides_b})
    if not draws:
        return []
    pair = _Pair([[side for side in sides if side.cell.record["draw"] in draws] for sides in (sides_a, sides_b)])
    task, protocol, fraction, shots = setting
    first, metric = sides_a[0].cell, sides_a[0].metric
    rows = []
    for column, label in enumerate(columns_of(first)):
        own = (row for row in first.result["scores"] if (row["metric"], row["label"]) == (metric, label))
        if (score := next(own, None)) is None:
            continue
        found = pair.difference(column, label, rules)
        rows.append(
            {
                "task": task,
                "protocol": protocol,
                "fraction": fraction,
                "shots": shots,
                "metric": metric,
                "label": label,
                "family": "macro" if label == MACRO else "label",
                "a": first.record["encoder"],
                "b": sides_b[0].cell.record["encoder"],
                **found,
                "n": score["n"],
                "draws": len(draws),
                "seeds": [len({side.cell.record["seed"] for side in sides}) for sides in pair.sides],
                "rule": RULE,
            }
        )
    return rows


class _Pair:
    """The cells of two encoders over their common draws; a draw counts once, however many seeds it has."""

    def __init__(self, sides: list[list[Side]]) -> None:
        self.sides = sides
        self.metric = sides[0][0].metric
        self.all = [*sides[0], *sides[1]]
        draws = [[side.cell.record["draw"] for side in own] for own in sides]
        count = len(set(draws[0]))
        shares = [[1 / (count * own.count(draw)) for draw in own] for own in draws]
        self.weights = np.array([*shares[0], *(-share for share in shares[1])])
        self._null: tuple[np.ndarray, int] | None = None

    def difference(self, column: int, label: str, rules: Rules) -> dict[str, Any]:
        """Return values, difference, interval, p and test of one label."""
        values = np.array([values_of(side.cell).get((self.metric, label), np.nan) for side in self.all])
        count = len(self.sides[0])
        value_a, value_b = (
            float(np.abs(self.weights[part]) @ values[part]) for part in (slice(count), slice(count, None))
        )
        found: dict[str, Any] = {"value_a": value_a, "value_b": value_b, "difference": value_a - value_b}
        difference = value_a - value_b
        if np.isnan(difference):
            return found | {"low": np.nan, "high": np.nan, "p": np.nan, "test": None, "left_out": None}
        resampled = np.stack([side.cell.bootstrap[self.metric][:, column] for side in self.all])
        without = [side.cell.jackknife[self.metric][:, column] for side in self.all]
        bounds = self._bounds(difference, values, label, self.weights @ resampled, without, rules)
        p, test = self._over_patients(difference, column, label, self.weights @ resampled, rules)
        if len(self.all) > 2:
            bounds, p = self._with_cells(difference, values, resampled, bounds, p, rules)
            test += WITH_COMPONENTS
        return found | {"low": bounds.low, "high": bounds.high, "p": p, "test": test, "left_out": bounds.left_out}

    def _bounds(
        self,
        difference: float,
        values: np.ndarray,
        label: str,
        resampled: np.ndarray,
        without: Sequence[np.ndarray],
        rules: Rules,
    ) -> Interval:
        """Return the interval over patients."""
        constant = np.ptp(resampled) < ROUNDING
        if abs(difference) > ROUNDING if constant else self.metric in RAISED_BY_NOISE:
            # Where no resample tells more than the scores themselves, such as a perfect one, and where noise raises
            # each score by an amount of its own, the scores' own bounds do (MOVER).
            low, high = np.array([side.bounds(label) for side in self.all]).T
            a, b, shares = slice(len(self.sides[0])), slice(len(self.sides[0]), None), np.abs(self.weights)
            down, up = shares * (values - low), shares * (high - values)
            reach = np.hypot(down[a].sum(), up[b].sum()), np.hypot(up[a].sum(), down[b].sum())
            return Interval(difference - float(reach[0]), difference + float(reach[1]))
        if self._same_samples:
            return interval(difference, resampled, self.weights @ np.stack(without), rules.alpha)
        return percentile_interval(resampled, rules.alpha)

    def _with_cells(
        self,
        difference: float,
        values: np.ndarray,
        resampled: np.ndarray,
        bounds: Interval,
        p: float,
        rules: Rules,
    ) -> tuple[Interval, float]:
        cells = [side.cell for side in self.all]
        found = components_of(values, resampled, self.weights, cells, [cell.record["encoder"] for cell in cells])
        if found is None:
            return Interval.unknown(bounds.left_out), float("nan")
        p = with_components(difference, p, found.random, found.freedom)
        return found.widen(difference, bounds, rules.alpha), p

    def _over_patients(
        self, difference: float, column: int, label: str, resampled: np.ndarray, rules: Rules
    ) -> tuple[float, str]:
        read = [side.read for side in self.all]
        if any(one is None for one in read) or not self._same_samples:
            return bootstrap_p(difference, resampled), BOOTSTRAP
        if self.metric == AUROC:
            if not all(label in one.influence for one in read if one):
                return float("nan"), DELONG
            influence = self.weights @ np.stack([one.influence[label] for one in read if one])
            error = float(np.linalg.norm(influence))
            # DeLong sees no variance where one is perfect and the other is constant; an exchange does.
            if not error < ROUNDING < abs(difference):
                return normal_p(difference, error), DELONG
        exchanged, patients = self._exchanged(rules)
        return exchange_p(difference, exchanged[:, column], len(exchanged) == 2**patients), PERMUTATION

    @cached_property
    def _same_samples(self) -> bool:
        """Whether all cells answer the same samples; where their kind does not tell, whether as many patients do."""
        read = [side.read for side in self.all]
        found = {
            one.digest if one else str(side.cell.result["patients"]) for one, side in zip(read, self.all, strict=True)
        }
        return len(found) == 1

    def _exchanged(self, rules: Rules) -> tuple[np.ndarray, int]:
        """Return the difference of every label after each exchange `[m k+1]`, and the number of patients.

        Patients change sides in all cells at once.
        """
        if self._null is None:
            own, other = ([side.exchangeable for side in part] for part in self.sides)
            patients = len(set(own[0].patient_ids))
            swapped = exchanges(patients, rules.permutations, rules.seed)
            draws = [side.cell.record["draw"] for side in self.all]
            terms = [
                -len(set(draws)) * self.weights[i] * self.weights[j] * exchanged_differences(one, two, swapped)
                for (i, one), (j, two) in itertools.product(enumerate(own), enumerate(other, len(own)))
                if draws[i] == draws[j]
            ]
            self._null = np.sum(terms, axis=0), patients
        return self._null
