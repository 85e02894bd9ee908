"""Classification as BenchX reports it: mean and deviation over seeds, in per cent, beside its published numbers.

Guarantee: only scores that are computed as BenchX does enter; the deviation is that of the population (it divides by
the number of seeds), which is no interval and says nothing of other patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import METRICS, Group
from medvlp.html.numbers import decimal
from medvlp.metrics.benchx import mean_and_deviation

REPORTED = ("legacy_auroc", "argmax_f1")
"""What BenchX prints of a task: macro AUROC of several labels, F1 of one."""
PER_CENT_DECIMALS = 2
"""To which BenchX rounds the F1 of a run before it takes the mean."""


@dataclass(frozen=True)
class Row:
    """One encoder: `mean ± deviation` for each amount of labels; `source` is the publication, if it is from one."""

    name: str
    source: str
    cells: list[str]


def as_benchx(found: Results) -> Iterator[dict[str, Any]]:
    """Yield a table for each task that has such a score: encoders down, amounts of labels across."""
    for task in dict.fromkeys(group.setting.task for group in found.groups):
        metric = next((name for name in REPORTED if name in found.metrics(task)), None)
        every = [*found.groups, *found.published_groups]
        groups = [one for one in every if one.setting.task == task and one.setting.protocol == "fine_tune"]
        if metric is None or not groups:
            continue
        amounts = sorted({(one.setting.fraction, one.setting.amount) for one in groups})
        at = {(one.setting.encoder, one.source, one.setting.fraction): _text(one, metric) for one in groups}
        rows = [
            Row(name, source, [at.get((name, source, fraction), "") for fraction, _ in amounts])
            for name, source in dict.fromkeys((one.setting.encoder, one.source) for one in groups)
        ]
        yield {
            "task": task,
            "metric": METRICS[metric],
            "amounts": [amount for _, amount in amounts],
            "rows": [row for row in rows if not row.source or any(row.cells)],
            "sources": list(dict.fromkeys(row.source for row in rows if row.source)),
        }


def _text(group: Group, metric: str) -> str:
    """Return `77.0 ± 0.21`, without deviation for a single number; empty where there is none."""
    if group.source:
        score = group.score(metric, "macro")
        return "" if score is None or score.value is None else decimal(100 * score.value, 1)
    rows = [row for cell in group.cells for row in cell.result.get("scores", [])]
    found = [row["value"] for row in rows if (row["metric"], row["label"]) == (metric, "macro")]
    if not found or None in found:
        return ""
    values = [round(100 * value, PER_CENT_DECIMALS) if metric == "argmax_f1" else 100 * value for value in found]
    mean, deviation = mean_and_deviation(values)
    return decimal(mean, 1) + (f" ± {decimal(deviation, 2)}" if len(values) > 1 else "")
