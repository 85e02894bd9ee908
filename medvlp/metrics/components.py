"""Variance components of a mean over cells: draws of training labels, seeds, and what is left, beside the patients.

Guarantee: unbiased in any design, balanced or not, before a negative component is set to 0: quadratic forms are
equated with their expectations (MINQUE with unit weights: Rao, Journal of Multivariate Analysis 1971; in a balanced
design it is the analysis of variance). The covariance that shared test patients bring is known from resamples and taken
off first, so that the noise of a small test set is not called a difference between draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvlp.metrics.intervals import Interval

if TYPE_CHECKING:
    from jaxtyping import Float

RESIDUAL = "residual"
_SINGULAR = 1e-9


@dataclass(frozen=True)
class Components:
    """Variances of a single draw, seed and so on, and what they do to the estimate."""

    variances: Mapping[str, float]
    """Component -> variance; NaN where the design cannot tell it."""
    patients: float
    """Variance of the estimate by the choice of test patients."""
    random: float
    """Variance of the estimate by all other components."""
    freedom: float
    """Degrees of freedom of `random` (Satterthwaite); infinite where `random` is 0."""

    def widen(self, value: float, bounds: Interval, alpha: float) -> Interval:
        """Return the interval of an estimate from that over patients alone.

        Independent parts add up as squares, each on its own side, so that a skewed interval stays skewed (MOVER: Zou
        and Donner, Statistics in Medicine 2008).
        """
        if not self.random > 0:
            return bounds
        reach = float(stats.t.ppf(1 - alpha / 2, self.freedom)) * self.random**0.5
        low = value - float(np.hypot(value - bounds.low, reach))
        return Interval(low, value + float(np.hypot(bounds.high - value, reach)), bounds.left_out)


class Design:
    """Cells with their levels of every factor, the groups whose means are fixed, and the estimate: weights of cells.

    Args:
        factors: Name -> level of each cell. A factor with one level, or that no data of this design tells from those
            named before, has no component. What no factor explains is the residual.
        weights: The estimate is the weighted sum of the cells' values.
        groups: Cells of one group have one expectation; one group by default.
    """

    def __init__(
        self,
        factors: Mapping[str, Sequence[Hashable]],
        weights: Float[np.ndarray, " c"],
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        cells = len(self.weights)
        fixed = _indicators(groups if groups is not None else [0] * cells)
        projection = np.eye(cells) - fixed @ np.linalg.pinv(fixed)
        self.names: list[str] = []
        self._covariances: list[np.ndarray] = []
        self._forms: list[np.ndarray] = []
        for name, levels in {**factors, RESIDUAL: range(cells)}.items():
            covariance = _indicators(levels) @ _indicators(levels).T
            form = projection @ covariance @ projection
            known = np.stack([each.ravel() for each in [*self._forms, form]])
            if np.linalg.matrix_rank(known, tol=_SINGULAR * cells) == len(known):
                self.names.append(name)
                self._covariances.append(covariance)
                self._forms.append(form)

    @cached_property
    def _expectations(self) -> Float[np.ndarray, "k k"]:
        return np.array([[np.vdot(form, each) for each in self._covariances] for form in self._forms])

    def components(self, values: Float[np.ndarray, " c"], known: Float[np.ndarray, "c c"]) -> Components:
        """Estimate the components.

        Args:
            values: Score of each cell.
            known: Covariance of the scores by the choice of test patients.
        """
        found = np.array([values @ form @ values - np.vdot(form, known) for form in self._forms])
        active = list(range(len(self.names)))
        variances = np.zeros(len(self.names))
        while active:
            solved = np.linalg.solve(self._expectations[np.ix_(active, active)], found[active])
            if solved.min() >= 0:
                variances[active] = solved
                break
            active.remove(active[int(solved.argmin())])
        weights, patients = self.weights, float(self.weights @ known @ self.weights)
        shares = np.array([weights @ each @ weights for each in self._covariances])
        random = float(shares @ variances) if len(shares) else 0.0
        named = dict(zip(self.names, variances.tolist(), strict=True))
        return Components(named, patients, random, self._freedom(active, shares, variances, random))

    def _freedom(
        self,
        active: list[int],
        shares: Float[np.ndarray, " k"],
        variances: Float[np.ndarray, " k"],
        random: float,
    ) -> float:
        """Return 2 v² / Var(v) of v, the random part, as a quadratic form in normal values without patients' noise."""
        if not active or random <= 0:
            return float("inf")
        factors = np.linalg.solve(self._expectations[np.ix_(active, active)].T, shares[active])
        form = sum(factor * self._forms[i] for factor, i in zip(factors, active, strict=True))
        covariance = sum(v * each for v, each in zip(variances, self._covariances, strict=True))
        product = form @ covariance
        return float(2 * random**2 / (2 * np.vdot(product, product.T)))


def _indicators(levels: Sequence[Hashable]) -> Float[np.ndarray, "c l"]:
    places = {level: i for i, level in enumerate(dict.fromkeys(levels))}
    found = np.zeros((len(levels), len(places)))
    found[np.arange(len(levels)), [places[level] for level in levels]] = 1
    return found
