"""The charts of a report: label efficiency, ROC, reliability, decision curves, and rows for interval plots.

Guarantee: ROC, reliability and decision curves are computed from the kept predictions and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS, Cell, Group, is_baseline
from medvlp.html.charts import Axis, Series, Style, line_chart, marker_path
from medvlp.html.numbers import decimal, interval, tick_label, ticks
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.calibration import reliability_curve
from medvlp.metrics.decision import decision_curve

if TYPE_CHECKING:
    from jaxtyping import Float

_GRID = np.linspace(0.0, 1.0, 201)
FEW_ENCODERS = 3
"""Most lines of a plot whose intervals are drawn; of more they would hide each other."""
DECISION_THRESHOLDS = tuple(round(0.02 * i, 2) for i in range(1, 50))


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


def roc_points(
    truth: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], grid: Float[np.ndarray, " g"] = _GRID
) -> Float[np.ndarray, " g"] | None:
    """Return the true-positive rate at false-positive rates from 0 to 1, or None where a class is missing.

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
    return np.r_[0.0, np.interp(grid[1:], fpr, tpr)]


@dataclass
class Pooled:
    """Answers to one label of all cells of a setting; their patients are resampled as the suite says."""

    truth: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    patients: Sequence[str]
    dataset: str

    def resamples(self, suite: Mapping[str, Any]) -> Resamples:
        """Return the resamples of the patients."""
        number, seed = int(suite.get("bootstrap_resamples") or 1000), int(suite.get("bootstrap_seed") or 0)
        return _resamples(tuple(self.patients), number, seed, self.dataset)


@lru_cache(maxsize=4)
def _resamples(patients: tuple[str, ...], number: int, seed: int, dataset: str) -> Resamples:
    return Resamples.draw(patients, number, seed, dataset)


def read_groups(groups: Sequence[Group]) -> dict[str, list[tuple[Cell, Any]]]:
    """Return encoder -> its cells with their predictions, where they are there."""
    return {
        group.setting.encoder: [(cell, frame) for cell in group.cells if (frame := read_predictions(cell)) is not None]
        for group in groups
    }


def _pooled(frames: Sequence[tuple[Cell, Any]], label: str) -> tuple[Pooled, list[Float[np.ndarray, " g"]]] | None:
    """Return the answers of all cells together, and the ROC curve of each; None where no cell has both classes."""
    pairs = [(cell, frame, *label_pairs(frame, label)) for cell, frame in frames if f"score:{label}" in frame]
    lines = [line for _, _, truth, scores in pairs if (line := roc_points(truth, scores)) is not None]
    if not lines:
        return None
    patients = [
        str(patient)
        for _, frame, _, _ in pairs
        for patient in frame["patient_id"][np.isfinite(frame[f"label:{label}"]) & np.isfinite(frame[f"score:{label}"])]
    ]
    truth, scores = (np.concatenate([pair[i] for pair in pairs]) for i in (2, 3))
    return Pooled(truth, scores, patients, str(pairs[0][0].info.get("dataset", ""))), lines


@dataclass(frozen=True)
class Curves:
    """Plots of one label."""

    roc: Markup
    reliability: Markup
    decision: Markup | None


def curves(
    answers: Mapping[str, Sequence[tuple[Cell, Any]]],
    label: str,
    looks: Mapping[str, Style],
    suite: Mapping[str, Any] | None = None,
) -> Curves | None:
    """Draw ROC, reliability and decision curves of one label.

    Seeds and draws are averaged (ROC) or pooled (the others). Shares of the reliability plot have their intervals in
    their notes, and drawn where there are few encoders; decision curves have theirs as bands.

    Args:
        answers: Encoder -> its cells with their predictions, see `read_groups`.
        label: The label.
        looks: Style of each encoder.
        suite: Resamples, seed and coverage, as in `suite.json`.
    """
    suite = suite or {}
    alpha = float(suite.get("alpha") or 0.05)
    found = {name: own for name, frames in answers.items() if (own := _pooled(frames, label)) is not None}
    if not found:
        return None
    roc = [
        Series(name, _GRID.tolist(), np.mean(lines, axis=0).tolist(), looks[name], points=False)
        for name, (_, lines) in found.items()
    ]
    reliability = [
        _reliability(name, own, looks[name], suite, alpha, drawn=len(found) <= FEW_ENCODERS)
        for name, (own, _) in found.items()
    ]
    unit = [
        Axis.linear(text, 0, 1)
        for text in ("False-positive rate", "True-positive rate", "Predicted probability", "Observed share")
    ]
    return Curves(
        line_chart(roc, unit[0], unit[1], f"ROC curves for {label}", diagonal=True),
        line_chart(reliability, unit[2], unit[3], f"Reliability curves for {label}", diagonal=True),
        _decision({name: own for name, (own, _) in found.items()}, label, looks, suite, alpha),
    )


def _reliability(
    name: str, own: Pooled, style: Style, suite: Mapping[str, Any], alpha: float, *, drawn: bool
) -> Series:
    curve = reliability_curve(own.truth, own.scores, own.resamples(suite), alpha=alpha)
    notes = [
        f"score {decimal(score, 2)}, observed {decimal(share, 2)} ({interval(low, high, 2)}), n = {size}"
        for score, share, low, high, size in zip(
            curve.score, curve.share, curve.low, curve.high, curve.size, strict=True
        )
    ]
    low, high = (bound.tolist() if drawn and not np.isnan(bound).any() else None for bound in (curve.low, curve.high))
    return Series(
        name, curve.score.tolist(), curve.share.tolist(), style, low, high, band=False, notes=notes, told=drawn
    )


def _decision(
    found: Mapping[str, Pooled], label: str, looks: Mapping[str, Style], suite: Mapping[str, Any], alpha: float
) -> Markup | None:
    """Draw net benefit over threshold probabilities, with those of treating all and none; None with one class alone."""
    lines: list[Series] = []
    drawn = {
        name: decision_curve(own.truth, own.scores, own.resamples(suite), DECISION_THRESHOLDS, alpha)
        for name, own in found.items()
    }
    first = next(iter(drawn.values()))
    prevalence = float(np.mean(next(iter(found.values())).truth))
    if not 0 < prevalence < 1:
        return None
    xs = first.thresholds.tolist()
    for name, curve in drawn.items():
        notes = [
            f"at {x:g}: {decimal(y)} ({interval(low, high)})"
            for x, y, low, high in zip(xs, curve.model, curve.model_low, curve.model_high, strict=True)
        ]
        few = len(drawn) <= FEW_ENCODERS
        lower, upper = (bound.tolist() if few else None for bound in (curve.model_low, curve.model_high))
        lines.append(Series(name, xs, curve.model.tolist(), looks[name], lower, upper, points=False, notes=notes))
    # Down to the worst encoder, but no further than as many false alarms as there are positives.
    lowest = min(float(curve.model.min()) for curve in drawn.values())
    bottom = min(-prevalence / 3, max(lowest, -prevalence))
    shown = int((first.treat_all >= bottom).sum())
    lines.append(
        Series("treat all", xs[:shown], first.treat_all[:shown].tolist(), Style("var(--ink)", "2 3"), points=False)
    )
    lines.append(Series("treat none", [xs[0], xs[-1]], [0.0, 0.0], Style("var(--faint)", "8 3"), points=False))
    return line_chart(
        lines,
        Axis.linear("Threshold probability", 0, 1),
        Axis.linear("Net benefit", bottom, prevalence * 1.05),
        f"Decision curves for {label}; dotted: treat all, dashed at 0: treat none",
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
