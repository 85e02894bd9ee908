"""The charts of a report: label efficiency, ROC, reliability, and rows for interval plots.

Guarantee: ROC and reliability curves are computed from the kept predictions and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS, Cell, Group, is_baseline
from medvlp.html.charts import Axis, Series, Style, line_chart, marker_path
from medvlp.html.numbers import decimal, interval, tick_label, ticks
from medvlp.metrics.classification import ECE_BINS, ece_bin

if TYPE_CHECKING:
    from jaxtyping import Float

_GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class StripAxis:
    """Horizontal scale of an interval plot in HTML."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Return where a value lies, in percent of the width."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)


def strip_axis(values: Sequence[float | None], include: float | None = None, about: int = 5) -> StripAxis:
    """Return a scale with round ends that holds all values."""
    found = [v for v in values if v is not None] + ([] if include is None else [include])
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    margin = max((high - low) * 0.04, 0.01)
    marks = ticks(low - margin, high + margin, about)
    return StripAxis(low - margin, high + margin, tuple((mark, tick_label(mark, marks)) for mark in marks))


def strip_style(style: Style) -> dict[str, str]:
    """Return what the strip macro needs to draw a marker."""
    return {"colour": style.colour, "path": marker_path(style.marker, 0, 0, 4.6)}


def read_predictions(cell: Cell) -> Any | None:
    """Return the cell's predictions of the test split, or None where the file is missing or broken."""
    import pandas as pd

    path = cell.folder / "predictions.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, KeyError):
        return None


def label_pairs(frame: Any, label: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return truth and scores of a label, without the samples that are left out of it."""
    truth = frame[f"label:{label}"].to_numpy(dtype="float64")
    scores = frame[f"score:{label}"].to_numpy(dtype="float64")
    kept = np.isfinite(truth) & np.isfinite(scores)
    return truth[kept], scores[kept]


def roc_points(truth: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " g"] | None:
    """Return the true-positive rate at 201 evenly spaced false-positive rates, or None where a class is missing.

    Ties are one step, as in the trapezoidal area under the curve.
    """
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    tpr = np.r_[0.0, np.cumsum(truth[order] == 1)[last_of_tie] / positives]
    fpr = np.r_[0.0, np.cumsum(truth[order] == 0)[last_of_tie] / negatives]
    # of several points at one false-positive rate the highest counts, except at 0, where the curve starts
    return np.r_[0.0, np.interp(_GRID[1:], fpr, tpr)]


def reliability_points(
    truth: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], bins: int = ECE_BINS
) -> tuple[list[float], list[float], list[int]]:
    """Return mean score, share of positives and size of every filled bin, in the bins of the calibration error."""
    which = ece_bin(scores, bins)
    sizes = np.bincount(which)
    filled = sizes > 0
    mean = np.bincount(which, weights=scores)[filled] / sizes[filled]
    share = np.bincount(which, weights=truth)[filled] / sizes[filled]
    return mean.tolist(), share.tolist(), sizes[filled].tolist()


def curves(groups: Sequence[Group], label: str, looks: Mapping[str, Style]) -> tuple[Markup, Markup] | None:
    """Draw the ROC and reliability plot of one label; seeds and draws are averaged (ROC) or pooled (reliability)."""
    roc, reliability = [], []
    for group in groups:
        pairs = [
            label_pairs(f, label)
            for c in group.cells
            if (f := read_predictions(c)) is not None and f"score:{label}" in f
        ]
        lines = [line for truth, scores in pairs if (line := roc_points(truth, scores)) is not None]
        if not lines:
            continue
        name, style = group.setting.encoder, looks[group.setting.encoder]
        roc.append(Series(name, _GRID.tolist(), np.mean(lines, axis=0).tolist(), style, points=False))
        mean, share, sizes = reliability_points(
            np.concatenate([truth for truth, _ in pairs]), np.concatenate([scores for _, scores in pairs])
        )
        notes = [
            f"score {decimal(m, 2)}, observed {decimal(s, 2)}, n = {k}"
            for m, s, k in zip(mean, share, sizes, strict=True)
        ]
        reliability.append(Series(name, mean, share, style, notes=notes))
    if not roc:
        return None
    unit = [
        Axis.linear(text, 0, 1)
        for text in ("False-positive rate", "True-positive rate", "Predicted probability", "Observed share")
    ]
    return (
        line_chart(roc, unit[0], unit[1], f"ROC curves for {label}", diagonal=True),
        line_chart(reliability, unit[2], unit[3], f"Reliability curves for {label}", diagonal=True),
    )


def efficiency(groups: Sequence[Group], metric: str, label: str, looks: Mapping[str, Style]) -> Markup | None:
    """Draw a score over the share of labels (or the shots) used, a line per encoder; None for a single amount."""
    few_shot = bool(groups) and groups[0].setting.shots > 0
    amounts = sorted({g.setting.shots if few_shot else g.setting.fraction for g in groups if g.cells})
    if len(amounts) < 2:
        return None
    lines, values = [], []
    for name in dict.fromkeys(g.setting.encoder for g in groups):
        points = [(g, s) for g in groups if g.setting.encoder == name and (s := g.score(metric, label)) is not None]
        if not points:
            continue
        xs = [float(g.setting.shots if few_shot else g.setting.fraction) for g, _ in points]
        ys = [s.value for _, s in points if s.value is not None]
        low = [y if s.low is None else s.low for y, (_, s) in zip(ys, points, strict=True)]
        high = [y if s.high is None else s.high for y, (_, s) in zip(ys, points, strict=True)]
        notes = [f"{g.setting.amount}: {decimal(s.value)} ({interval(s.low, s.high)})" for g, s in points]
        lines.append(Series(name, xs, ys, looks[name], low, high, band=not is_baseline(name), notes=notes))
        values += [*low, *high]
    text = (lambda a: f"{a:g}") if few_shot else (lambda a: f"{100 * a:g} %")
    x = Axis(
        "Samples per class" if few_shot else "Labels used for training",
        amounts[0] / 1.25,
        amounts[-1] * 1.25,
        tuple((a, text(a)) for a in amounts),
        log=True,
    )
    scale = strip_axis(values)
    title = METRICS.get(metric, metric) + (", lower is better" if metric in LOWER_IS_BETTER else "")
    return (
        line_chart(lines, x, Axis.linear(title, scale.low, scale.high), f"{title} over {x.label.lower()}")
        if lines
        else None
    )
