"""How well a label is predicted by what is no disease: view, age, sex, size, brightness, histogram, 16×16 pixels.

Guarantee: each number is what a fitted model achieves on samples it has not seen: logistic regression on standardised
predictors, fitted on the training and validation splits and scored on the test split; without a test split, out-of-fold
scores of a cross-validation grouped by patient. Intervals come from a bootstrap over patients. A model that reaches no
more than these numbers need not have learned anything about disease.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from medvlp.progress import progress_bar
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from medvlp.store.array_store import Store

HISTOGRAM_BINS = 32
THUMBNAIL_SIDE = 16
MIN_PER_CLASS = 10
"""Samples that each class needs, in the fitted part and in the scored part."""
MAX_FITTED = 20_000
"""Samples that a model is fitted on at most (a seeded draw); so few numbers per sample need no more."""
FOLDS = 5
RESAMPLES = 500
_INVERSE_PENALTY = {"pixels_16x16": 0.01, "histogram": 0.1}
_READ_AT_ONCE = 512


@dataclass(frozen=True)
class Probe:
    """One predictor against one label. `against` is "absent", or the label that negatives have (as "No Finding").

    `auroc`, `low` and `high` are NaN where `reason` says why nothing could be measured.
    """

    dataset: str
    label: str
    against: str
    predictor: str
    auroc: float
    low: float
    high: float
    n: int
    positives: int
    scored_on: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None for NaN."""
        values = asdict(self)
        return {name: None if value != value else value for name, value in values.items()}


def image_statistics(store: Store) -> tuple[Float[np.ndarray, "n 256"], Float[np.ndarray, "n 32"]]:
    """Return 16×16 pixels and the histogram (shares) of every image, in the order of `store.images`."""
    rows = store.images["index"].to_numpy()
    thumbnails = np.empty((len(rows), THUMBNAIL_SIDE**2), dtype=np.float32)
    histograms = np.empty((len(rows), HISTOGRAM_BINS), dtype=np.float32)
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    with progress_bar(f"Reading images of {store.dataset}", len(rows), "images") as advance:
        for start in range(0, len(rows), _READ_AT_ONCE):
            block = store.read(rows[start : start + _READ_AT_ONCE])
            full_scale = np.iinfo(block.dtype).max
            grey = block if block.ndim == 3 else block.mean(axis=-1).astype(block.dtype)
            for at, image in enumerate(grey, start):
                small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                thumbnails[at] = small.astype(np.float32).ravel() / full_scale
                counts = cv2.calcHist([image], [0], None, [HISTOGRAM_BINS], [0, full_scale + 1])
                histograms[at] = counts.ravel() / image.size
            advance(len(block))
    return thumbnails, histograms


def predictors(
    samples: pd.DataFrame, thumbnails: Float[np.ndarray, "n 256"], histograms: Float[np.ndarray, "n 32"]
) -> dict[str, Float[np.ndarray, "n f"]]:
    """Return the matrix of each predictor, rows as in `samples`. Missing values get a column of their own."""
    height, width = samples["height"].to_numpy(float), samples["width"].to_numpy(float)
    return {
        "view": _one_hot(samples["view"]),
        "age": _number(samples["age"]),
        "sex": _one_hot(samples["sex"]),
        "image_size": np.stack([height, width, np.log(height * width), np.log(height / width)], axis=1),
        "mean_brightness": samples["mean"].to_numpy(float)[:, None],
        "histogram": histograms.astype(float),
        "pixels_16x16": thumbnails.astype(float),
    }


def probes(dataset: str, samples: pd.DataFrame, features: Mapping[str, np.ndarray], normal: str | None) -> list[Probe]:
    """Fit and score every predictor on every question of one data set.

    Args:
        dataset: Its name.
        samples: One row per image: `patient_id`, `study_id`, `split` and `label:<name>`.
        features: From `predictors`.
        normal: Label that stands for a normal image: each other label is also set against it.
    """
    questions = list(_questions(samples, normal))
    part = _parts(samples)
    results = []
    with progress_bar(f"Probing {dataset} for shortcuts", len(questions) * len(features), "probes") as advance:
        for label, against, positive, negative in questions:
            chosen = positive | negative
            groups = _patients(samples)[chosen]
            resamples = _patient_weights(groups[part[chosen] == "score"] if "score" in part else groups)
            for name, matrix in features.items():
                penalty = _INVERSE_PENALTY.get(name, 1.0)
                score = _score(matrix[chosen], positive[chosen], part[chosen], groups, penalty, resamples)
                results.append(Probe(dataset, label, against, name, **score))
                advance()
    return results


def weighted_auroc(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Return the AUROC under each row of sample weights; ties count half, NaN where a class is missing."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    negative_weight = np.where(positive, 0, weights)
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(negative_weight, axis=1)], axis=1)
    first = np.searchsorted(scores, scores[positive], side="left")
    last = np.searchsorted(scores, scores[positive], side="right")
    positive_weight = weights[:, positive]
    area = (positive_weight * (below[:, first] + below[:, last])).sum(axis=1) / 2
    pairs = positive_weight.sum(axis=1) * below[:, -1]
    return np.divide(area, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _score(
    matrix: np.ndarray,
    positive: np.ndarray,
    part: np.ndarray,
    groups: np.ndarray,
    penalty: float,
    resamples: np.ndarray,
) -> dict[str, Any]:
    scored_on = "test" if (part == "score").any() else f"{FOLDS}-fold cross-validation"
    scored = part == "score" if scored_on == "test" else np.ones(len(part), dtype=bool)
    facts = {"n": int(scored.sum()), "positives": int(positive[scored].sum()), "scored_on": scored_on}
    empty = {"auroc": np.nan, "low": np.nan, "high": np.nan, **facts}
    for name, rows in (("fitted", part == "fit"), ("scored", scored)):
        counts = np.bincount(positive[rows].astype(int), minlength=2)
        if counts.min() < MIN_PER_CLASS:
            reason = f"{counts[1]} positive and {counts[0]} negative samples in the {name} part, {MIN_PER_CLASS} needed"
            return empty | {"reason": reason}
    if not np.ptp(matrix, axis=0).any():
        return empty | {"reason": "the same in all samples, or not recorded"}
    if scored_on == "test":
        predicted = _fit(matrix[part == "fit"], positive[part == "fit"], penalty)(matrix[scored])
    else:
        predicted = _out_of_fold(matrix, positive, groups, penalty)
    truth = positive[scored]
    auroc = weighted_auroc(truth, predicted, np.ones((1, len(truth))))[0]
    values = np.concatenate(
        [weighted_auroc(truth, predicted, resamples[start : start + 50]) for start in range(0, len(resamples), 50)]
    )
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return {"auroc": float(auroc), "low": float(low), "high": float(high), **facts}


def _fit(matrix: np.ndarray, positive: np.ndarray, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(matrix) > MAX_FITTED:
        kept = np.random.default_rng(0).choice(len(matrix), MAX_FITTED, replace=False)
        matrix, positive = matrix[kept], positive[kept]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not fully converged ranks almost the same
        model.fit(matrix, positive)
    return model.decision_function


def _out_of_fold(matrix: np.ndarray, positive: np.ndarray, groups: np.ndarray, penalty: float) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    predicted = np.empty(len(matrix))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(matrix, positive, groups)
    for fitted, scored in folds:
        if len(np.unique(positive[fitted])) < 2:
            predicted[scored] = 0
            continue
        predicted[scored] = _fit(matrix[fitted], positive[fitted], penalty)(matrix[scored])
    return predicted


def _questions(samples: pd.DataFrame, normal: str | None) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    columns = {c.removeprefix("label:"): samples[c].to_numpy(float) for c in samples.columns if c.startswith("label:")}
    for label, values in columns.items():
        present = values == PRESENT
        yield label, "absent", present, values == ABSENT
        if normal in columns and label != normal:
            yield label, str(normal), present, (columns[str(normal)] == PRESENT) & ~present


def _parts(samples: pd.DataFrame) -> np.ndarray:
    """Return "fit" or "score" per sample; all "fit" (to be cross-validated) unless both splits exist."""
    split = samples["split"].astype(object).to_numpy()
    fit, score = np.isin(split, ["train", "val"]), split == "test"
    if fit.any() and score.any():
        return np.where(score, "score", np.where(fit, "fit", "neither"))
    return np.full(len(samples), "fit")


def _patients(samples: pd.DataFrame) -> np.ndarray:
    """Return the patient of each sample; where unknown, the study stands for the patient."""
    patient = samples["patient_id"].astype(str).to_numpy()
    return np.where(patient == UNKNOWN_PATIENT, "study " + samples["study_id"].astype(str).to_numpy(), patient)


def _patient_weights(groups: np.ndarray) -> Float[np.ndarray, "r n"]:
    """Return how often each sample stands in each of `RESAMPLES` draws of patients with replacement."""
    names, of_sample = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    counts = np.empty((RESAMPLES, len(names)), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, max(len(names), 1), len(names)), minlength=len(names))
    return counts[:, of_sample]


def _one_hot(column: pd.Series) -> Float[np.ndarray, "n f"]:
    values = column.astype(object).where(column.notna(), "").astype(str).to_numpy()
    return (values[:, None] == np.unique(values)[None]).astype(float)


def _number(column: pd.Series) -> Float[np.ndarray, "n f"]:
    values = column.to_numpy(float)
    missing = np.isnan(values)
    filled = np.where(missing, 0 if missing.all() else np.nanmedian(values), values)
    return np.stack([filled, missing], axis=1)
