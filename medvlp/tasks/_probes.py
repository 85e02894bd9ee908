"""Heads on fixed features: logistic regression and k nearest neighbours, one per label.

Guarantee: everything is fitted on training samples; validation samples choose one number per label (C or k) by AUROC
and nothing else. The chosen model is the one fitted on the training samples: it is not fitted again with the validation
samples, which also choose the threshold of F1. Deterministic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medvlp.threads import few_threads

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MAX_ITERATIONS = 2000
CHOICE = 2
"""Version of how a number is chosen on validation. 2: of equal orders the first, not the one of larger last bits."""
TEMPERATURE = 0.07
"""Of the neighbours' weights, as in Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination."""
QUERIES_AT_ONCE = 1024


def _two_classes(labels: np.ndarray) -> bool:
    return bool((labels == 1).any() and (labels == 0).any())


def _auroc(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Return the AUROC as the share of pairs in order; the same number wherever the order is the same."""
    ones = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))


def _choose(candidates: Sequence[Any], labels: np.ndarray, scores: Sequence[np.ndarray]) -> tuple[int, float | None]:
    """Return the first candidate of highest validation AUROC; the middle one where validation has one class only."""
    known = ~np.isnan(labels)
    if not _two_classes(labels):
        return len(candidates) // 2, None
    values = [_auroc(labels[known] == 1, score[known]) for score in scores]
    return int(np.argmax(values)), max(values)


def _one_label(
    names: Sequence[str],
    train: Float[np.ndarray, "n d"],
    labels: Float[np.ndarray, "n k"],
    fit: Callable[[np.ndarray, np.ndarray, int], tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]],
) -> tuple[Scorers, dict[str, Any]]:
    """Fit label by label on the samples whose label is known; a label with one class gets its share of positives."""
    scorers: list[Callable[[np.ndarray], np.ndarray]] = []
    best: dict[str, Any] = {}
    for k, name in enumerate(names):
        known = ~np.isnan(labels[:, k])
        positive_share = float(labels[known, k].mean()) if known.any() else 0.5
        if train.shape[1] and _two_classes(labels[:, k]):
            scorer, best[name] = fit(train[known], labels[known, k], k)
        else:
            scorer = _constant(positive_share)
            best[name] = {"constant": positive_share}
        scorers.append(scorer)
    return Scorers(scorers), best


@dataclass(frozen=True)
class Scorers:
    """One scorer per label."""

    of_label: Sequence[Callable[[np.ndarray], np.ndarray]]

    def __call__(self, features: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return a probability for every label."""
        return np.stack([scorer(features) for scorer in self.of_label], axis=1)

    def directions(self, dim: int) -> Float[np.ndarray, "k d"]:
        """Return what a label's logit grows by with each feature; 0 where it is no line."""
        return np.stack([one.direction if isinstance(one, Line) else np.zeros(dim) for one in self.of_label])


@dataclass(frozen=True)
class Line:
    """A logistic regression on standardised features."""

    scaler: StandardScaler
    model: LogisticRegression

    def __call__(self, features: Float[np.ndarray, "q d"]) -> Float[np.ndarray, " q"]:
        """Return probabilities."""
        return self.model.predict_proba(self.scaler.transform(features.astype(np.float64)))[:, 1]

    @property
    def direction(self) -> Float[np.ndarray, " d"]:
        """Return the slope of the logit in the features as they are."""
        return self.model.coef_[0] / self.scaler.scale_


def _constant(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda features: np.full(len(features), value)


def linear_probe(
    names: Sequence[str],
    train: Float[np.ndarray, "n d"],
    train_labels: Float[np.ndarray, "n k"],
    val: Float[np.ndarray, "m d"],
    val_labels: Float[np.ndarray, "m k"],
    c_values: Sequence[float],
) -> tuple[Scorers, dict[str, Any]]:
    """Fit L2-penalised logistic regressions on features standardised by the training samples.

    Args:
        names: Names of the k labels.
        train: Training features.
        train_labels: 1, 0 or NaN (left out of that label's fit).
        val: Validation features.
        val_labels: As `train_labels`.
        c_values: Inverse penalties to try.

    Returns:
        A function from features `[q d]` to probabilities `[q k]`, and the chosen C per label.
    """
    c_sorted = sorted(c_values)

    def fit(features: np.ndarray, labels: np.ndarray, k: int) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
        scaler = StandardScaler().fit(features.astype(np.float64))
        scaled, scaled_val = scaler.transform(features.astype(np.float64)), scaler.transform(val.astype(np.float64))
        models, steps = [], []
        for c in c_sorted:
            model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                models.append(model.fit(scaled, labels))
            steps.append(int(model.n_iter_[0]))
        scores = [model.decision_function(scaled_val) for model in models]
        chosen, value = _choose(c_sorted, val_labels[:, k], scores)
        facts = {"C": c_sorted[chosen], "val_auroc": value, "converged": steps[chosen] < MAX_ITERATIONS}
        return Line(scaler, models[chosen]), facts

    with few_threads(train.size):
        return _one_label(names, train, train_labels, fit)


def _neighbour_scores(
    queries: np.ndarray, train: np.ndarray, labels: np.ndarray, ks: Sequence[int]
) -> list[Float[np.ndarray, " q"]]:
    """Return for each k the weighted share of positives among the k nearest by cosine, the earlier of equal ones."""
    results = [np.empty(len(queries)) for _ in ks]
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        similarity = _unit(queries[start : start + QUERIES_AT_ONCE]) @ train.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks)]
        nearest = np.take_along_axis(similarity, order, axis=1)
        weights = np.exp((nearest - nearest[:, :1]) / TEMPERATURE)
        positive = labels[order]
        for result, k in zip(results, ks, strict=True):
            share = (weights[:, :k] * positive[:, :k]).sum(axis=1) / weights[:, :k].sum(axis=1)
            result[start : start + QUERIES_AT_ONCE] = np.clip(share, 0, 1)
    return results


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest_neighbours(
    names: Sequence[str],
    train: Float[np.ndarray, "n d"],
    train_labels: Float[np.ndarray, "n k"],
    val: Float[np.ndarray, "m d"],
    val_labels: Float[np.ndarray, "m k"],
    k_values: Sequence[int],
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Classify by the k nearest training samples in cosine similarity, weighted by exp(similarity / 0.07).

    Arguments and results as in `linear_probe`, with the numbers of neighbours to try; those above the number of
    training samples count as that number.
    """

    def fit(features: np.ndarray, labels: np.ndarray, k: int) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
        ks = sorted({min(count, len(features)) for count in k_values})
        unit = _unit(features)
        chosen, value = _choose(ks, val_labels[:, k], _neighbour_scores(val, unit, labels, ks))
        facts = {"k": ks[chosen], "val_auroc": value}
        return lambda queries: _neighbour_scores(queries, unit, labels, [ks[chosen]])[0], facts

    return _one_label(names, train, train_labels, fit)
