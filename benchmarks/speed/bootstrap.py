"""Time of 1,000 patient-level bootstrap resamples of macro AUROC, beside a loop over scikit-learn, on one core.

    python benchmarks/speed/bootstrap.py [--out benchmarks/results/bootstrap.json]

The loop is timed on a few resamples and extrapolated; both see the same multiplicities and must agree to 1e-12.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.types import Predictions

LABELS, IMAGES, PATIENTS = 14, 22_433, 2_797
PREVALENCE = np.geomspace(0.002, 0.2, LABELS)


def make_predictions(seed: int = 0) -> Predictions:
    """Return random predictions of the size and prevalences of the official ChestX-ray14 test split."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((IMAGES, LABELS)) < PREVALENCE).astype(float)
    scores = 1 / (1 + np.exp(-(labels + rng.standard_normal((IMAGES, LABELS)))))
    owners = [str(patient) for patient in rng.integers(0, PATIENTS, IMAGES)]
    names = [f"label {k}" for k in range(LABELS)]
    return Predictions([str(i) for i in range(IMAGES)], owners, names, labels, scores)


def loop(predictions: Predictions, resamples: Resamples, count: int) -> np.ndarray:
    """Return macro AUROC of the first resamples by scikit-learn on the repeated samples."""
    values = []
    for patients in resamples.counts[:count]:
        rows = np.repeat(np.arange(IMAGES), patients[resamples.patient_of_sample])
        labels, scores = predictions.labels[rows], predictions.scores[rows]
        values.append(np.mean([roc_auc_score(labels[:, k], scores[:, k]) for k in range(LABELS)]))
    return np.array(values)


def main() -> None:
    """Measure, check, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--loop-resamples", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bootstrap.json")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    predictions = make_predictions()
    started = time.perf_counter()
    resamples = Resamples.draw(predictions.patient_ids, given.resamples, seed=0)
    values = bootstrap_values(predictions, resamples, metrics=["auroc"])["auroc"][:, -1]
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    by_loop = loop(predictions, resamples, given.loop_resamples)
    loop_seconds = (time.perf_counter() - started) / given.loop_resamples * given.resamples
    largest = float(np.abs(values[: given.loop_resamples] - by_loop).max())
    if largest > 1e-12:
        raise SystemExit(f"the two disagree by {largest}")
    result = {
        "what": "patient-level bootstrap of macro AUROC",
        "resamples": given.resamples,
        "labels": LABELS,
        "images": IMAGES,
        "patients": PATIENTS,
        "cores": 1,
        "seconds": round(seconds, 3),
        "must_be_at_most_seconds": 5,
        "scikit_learn_loop_seconds_extrapolated": round(loop_seconds, 1),
        "scikit_learn_loop_resamples_run": given.loop_resamples,
        "ratio": round(loop_seconds / seconds, 1),
        "largest_difference": largest,
        "versions": {"numpy": np.__version__, "scikit-learn": sklearn.__version__, "python": platform.python_version()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
