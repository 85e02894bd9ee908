"""What stands behind a setting's number and is drawn when a reader opens it: curves, calibration, confusion.

Guarantee: everything is computed from the kept predictions; a confusion matrix counts its cell's answers at the
threshold that was chosen on the validation split of that cell. Curves are rounded to a thousandth for drawing, counts
are exact.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.heat import MAPS, shown_maps
from medvlp.bench.report_charts import label_pairs, read_predictions, roc_points
from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import METRICS, Cell, Group, number
from medvlp.html.numbers import decimal, interval
from medvlp.metrics.classification import ECE_BINS, ece_bin

if TYPE_CHECKING:
    from jaxtyping import Float

logger = logging.getLogger(__name__)

GRID = np.linspace(0.0, 1.0, 101)
UNIT = 1000
"""Curves are whole numbers of this part of 1."""
SHOWN_METRICS = {"roc": "auroc", "pr": "average_precision", "bins": "ece"}
"""Chart -> metric that is written below it."""


def behind(found: Results, samples: Collection[str] = ()) -> str:
    """Return what the page draws of each setting and the records of each cell, as base64 of gzipped JSON.

    `settings`: id of a setting -> its labels, see `drawn`; `maps`: id of a setting -> heat maps of its first cell, of
    the images that are on the page (`samples`); `cells`: hash -> `cell` and `result`, scores left out, which
    stand in the tables.
    """
    settings = {group.setting.id: labels for group in found.groups if (labels := drawn(group))}
    cells = {
        cell.hash: {"cell": cell.info, "result": {k: v for k, v in cell.result.items() if k != "scores"}}
        for group in found.groups
        for cell in group.cells
    }
    maps = {group.setting.id: own for group in found.groups if (own := _maps(group, samples))}
    text = json.dumps({"settings": settings, "maps": maps, "cells": cells}, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def _maps(group: Group, samples: Collection[str]) -> list[dict[str, Any]]:
    import pandas as pd

    path = group.cells[0].folder / MAPS if group.cells and samples else None
    try:
        return shown_maps(pd.read_parquet(path), samples) if path is not None and path.is_file() else []
    except (OSError, ValueError, KeyError) as error:
        logger.warning("heat maps of %s left out: %s", group.setting.encoder, error)
        return []


def drawn(group: Group) -> list[dict[str, Any]]:
    """Return one record for each label of a classification; nothing for other tasks and without predictions.

    `roc` and `pr`: true-positive rate and precision at `GRID`, mean over cells, as steps from 0 in parts of `UNIT`;
    `bins`: mean probability, observed share and number of samples of each bin, all cells together; `share`: of
    positives; `confusion`: one for each cell.
    """
    frames = [(cell, frame) for cell in group.cells if (frame := read_predictions(cell)) is not None]
    labels = [column.removeprefix("score:") for column in frames[0][1] if column.startswith("score:")] if frames else []
    found = []
    for label in labels:
        pairs = [(cell, *label_pairs(frame, label)) for cell, frame in frames if f"score:{label}" in frame]
        truth, scores = (np.concatenate([pair[i] for pair in pairs]) for i in (1, 2))
        if not len(truth):
            continue
        record: dict[str, Any] = {"label": label, "share": round(float(truth.mean()), 4)}
        for name, points in (("roc", roc_points), ("pr", precision_points)):
            lines = [line for _, own, given in pairs if (line := points(own, given, GRID)) is not None]
            record[name] = _steps(np.mean(lines, axis=0)) if lines else None
        record["bins"] = _bins(truth, scores)
        record["said"] = {
            chart: f"{METRICS[metric]} {decimal(score.value)} ({interval(score.low, score.high)})"
            for chart, metric in SHOWN_METRICS.items()
            if (score := group.score(metric, label)) is not None
        }
        record["confusion"] = [one for cell, *pair in pairs if (one := _confusion(cell, label, *pair)) is not None]
        found.append(record)
    return found


def precision_points(
    truth: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], grid: Float[np.ndarray, " g"]
) -> Float[np.ndarray, " g"] | None:
    """Return the precision at each recall: that of the highest threshold that reaches it; None without positives.

    The area below these steps is the average precision. A recall of 0 stands for that of the first positive.
    """
    positives = int((truth == 1).sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    true = np.cumsum(truth[order] == 1)[last_of_tie]
    # a recall of the grid is reached also where it differs from k / positives by rounding alone
    return (true / (last_of_tie + 1))[np.searchsorted(true, np.maximum(grid * positives, 1) - 1e-9)]


def _steps(values: Float[np.ndarray, " g"]) -> list[int]:
    """Return what is added from one value to the next, the first from 0: shorter than the values."""
    return np.diff(np.rint(UNIT * values).astype(int), prepend=0).tolist()


def _bins(truth: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> list[list[float]]:
    """Return the bins of the expected calibration error that have samples; none of scores that are no probabilities."""
    if scores.min() < 0 or scores.max() > 1:
        return []
    which = ece_bin(scores)
    count, means, shares = (np.bincount(which, values, ECE_BINS + 1) for values in (None, scores, truth))
    kept = np.flatnonzero(count)
    return [[round(means[i] / count[i], 4), round(shares[i] / count[i], 4), int(count[i])] for i in kept.tolist()]


def _confusion(cell: Cell, label: str, truth: np.ndarray, scores: np.ndarray) -> dict[str, Any] | None:
    """Return the counts at the cell's own threshold; None where it has none."""
    threshold = number((cell.result.get("thresholds") or {}).get(label))
    if threshold is None:
        return None
    called = scores >= threshold
    counts = [((truth == 1) & called), ((truth == 1) & ~called), ((truth == 0) & called), ((truth == 0) & ~called)]
    about = _about(cell, ("seed", "draw"))
    return {"cell": about, "threshold": decimal(threshold, 4), "counts": [int(one.sum()) for one in counts]}


def _about(cell: Cell, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {cell.info[key]}" for key in keys if cell.info.get(key) is not None)
