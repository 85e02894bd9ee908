"""Charts of a fine-tuning: the curves of training, ROC and reliability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medvlp.bench.report_charts import roc_points
from medvlp.bench.report_scores import METRICS
from medvlp.html.charts import Axis, Series, Style, line_chart
from medvlp.html.numbers import decimal
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.calibration import reliability_curve
from medvlp.types import Predictions

if TYPE_CHECKING:
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.finetune.outcome import Outcome

BINS = 10
BEFORE, AFTER = Style("var(--grey-2)", "6 3", "square"), Style("var(--series-1)")
KEPT = Style("var(--series-2)", "", "diamond")


def progress(lines: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> list[tuple[str, Markup]]:
    """Return loss and validation score over the steps; the kept state is marked."""
    found = []
    criterion = next(name for name in chosen if name.startswith("val_")).replace("_", "/", 1)
    validation = f"Validation {METRICS.get(criterion[4:], criterion[4:])}"
    for name, title in (("train/loss", "Training loss"), (criterion, validation)):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if len(points) < 2:
            continue
        steps, values = zip(*points, strict=True)
        series = [Series(title, steps, values, AFTER, points=name != "train/loss")]
        if name == criterion:
            series.insert(0, Series("kept", [chosen["step"]], [dict(points)[chosen["step"]]], KEPT))
        margin = 0.05 * (max(values) - min(values)) or 0.01
        y = Axis.linear(title, min(values) - margin, max(values) + margin)
        found.append((title, line_chart(series, Axis.linear("Step", 0, max(steps)), y, f"{title} over the steps")))
    return found


def curves(config: FinetuneConfig, outcome: Outcome, dataset: str) -> Iterator[dict[str, Any]]:
    """Yield ROC and reliability of each label on test, before and after calibration."""
    test = outcome.test
    if outcome.raw is None or not isinstance(test, Predictions):
        return
    resamples = Resamples.draw(test.patient_ids, config.bootstrap_resamples, config.bootstrap_seed, dataset)
    unit = [
        Axis.linear(text, 0, 1)
        for text in ("False-positive rate", "True-positive rate", "Predicted probability", "Observed share")
    ]
    for k, name in enumerate(test.label_names):
        truth, scores = test.labels[:, k], test.scores[:, k]
        known = ~np.isnan(truth)
        points = roc_points(truth[known], scores[known])
        if points is None:
            continue
        roc = Series(name, np.linspace(0, 1, len(points)).tolist(), points.tolist(), AFTER, points=False)
        lines = []
        calibrated = (outcome.decisions[k].slope, outcome.decisions[k].intercept) != (1.0, 0.0)
        kinds = [("as used", scores, AFTER)] + (
            [("before calibration", outcome.raw[:, k], BEFORE)] if calibrated else []
        )
        for title, values, style in kinds:
            curve = reliability_curve(truth, values, resamples, BINS, "mass", config.alpha)
            notes = [
                f"predicted {decimal(p, 2)}, observed {decimal(share, 2)}, n = {size}"
                for p, share, size in zip(curve.score, curve.share, curve.size, strict=True)
            ]
            bars = {"low": curve.low.tolist(), "high": curve.high.tolist()} if style is AFTER else {}
            line = Series(title, curve.score.tolist(), curve.share.tolist(), style, band=False, notes=notes, **bars)
            lines.append(line)
        yield {
            "label": name,
            "roc": line_chart([roc], unit[0], unit[1], f"ROC curve of {name}", diagonal=True),
            "reliability": line_chart(lines, unit[2], unit[3], f"Reliability of {name}", diagonal=True),
            "calibrated": calibrated,
        }
