"""The sections of a report as plain records for its template.

Guarantee: a section is empty, never wrong, where the results do not hold what it needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from medvlp.bench.report_charts import curves, efficiency, read_groups, read_predictions, strip_axis, strip_style
from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import LOWER_IS_BETTER, PROTOCOL_NAMES, Group, Setting, is_baseline, number
from medvlp.html import data_uri
from medvlp.html.charts import Style

logger = logging.getLogger(__name__)

EXAMPLE_PIXELS = 256
MOST_COMPARISONS = 2000
"""Of more, the page holds those of the means over labels alone."""


def lead_label(groups: list[Group]) -> str:
    """Return the label that leads a task: `macro` where several labels were averaged, else the only one."""
    labels = dict.fromkeys(score.label for group in groups for score in group.scores)
    single = [name for name in labels if name != "macro"]
    return single[0] if len(single) == 1 or (single and "macro" not in labels) else "macro"


def panels(found: Results) -> Iterator[tuple[str, str, list[Group]]]:
    """Task, protocol, groups at the full amount of labels, with the baselines of other protocols beside."""
    for task in dict.fromkeys(g.setting.task for g in found.groups):
        full = [g for g in found.groups if g.setting.task == task and g.setting.fraction == 1 and not g.setting.shots]
        for protocol in dict.fromkeys(g.setting.protocol for g in full):
            own = [g for g in full if g.setting.protocol == protocol]
            if protocol not in PROTOCOL_NAMES or not any(g.cells for g in own):
                continue
            names = {g.setting.encoder for g in own if g.cells}
            extra = {
                g.setting.encoder: g
                for g in full
                if g.cells and is_baseline(g.setting.encoder) and not g.setting.encoder.startswith("random")
            }
            yield task, protocol, own + [g for name, g in extra.items() if name not in names]


def headline(found: Results, looks: dict[str, Style]) -> Iterator[dict[str, Any]]:
    """Yield interval plots of the primary metric with all training labels and of the differences to random weights."""
    for task, protocol, groups in panels(found):
        reads = found.tasks.get(task, {}).get("type") == "study_reading"
        if protocol not in ("linear_probe", "frozen", "fine_tune", "zero_shot") and not reads:
            continue
        label, metric = lead_label(groups), found.primary(task)
        # A baseline of another protocol stands beside for orientation; its difference belongs to its own protocol.
        deltas = {g.setting.encoder: _delta(found, g, label) for g in groups if g.setting.protocol == protocol}
        rows: list[dict[str, Any]] = []
        for group in groups:
            score = group.score(metric, label)
            name = group.setting.encoder
            beside = "" if group.setting.protocol == protocol else PROTOCOL_NAMES[group.setting.protocol]
            row = {"group": group, "score": score, "delta": deltas.get(name), "style": strip_style(looks[name])}
            rows.append(row | {"beside": beside})
        sign = 1 if metric in LOWER_IS_BETTER else -1
        rows.sort(key=lambda row: math.inf if row["score"] is None else sign * row["score"].value)
        bounds = [v for row in rows if row["score"] for v in (row["score"].low, row["score"].high, row["score"].value)]
        differences = [v for d in deltas.values() if d for v in (d["low"], d["high"], d["value"])]
        chance = next((row["score"].chance for row in rows if row["score"]), None)
        yield {
            "task": task,
            "protocol": protocol,
            "label": label,
            "metric": metric,
            "rows": rows,
            "axis": strip_axis(bounds, chance, 6),
            "chance": chance,
            "delta_axis": strip_axis(differences, 0.0, 4) if differences else None,
            "against": next((d["against"] for d in deltas.values() if d), ""),
            "n": next((row["score"].n for row in rows if row["score"]), None),
        }


def _delta(found: Results, group: Group, label: str) -> dict[str, Any] | None:
    """Difference of an encoder to the random one, from the paired comparisons."""
    setting = group.setting
    for row in found.comparisons:
        same = (row.get("task"), row.get("protocol")) == (setting.task, setting.protocol) and row.get(
            "metric"
        ) == found.primary(setting.task)
        if (
            not same
            or row.get("label") != label
            or (row.get("fraction") or 1.0) != setting.fraction
            or row.get("shots")
        ):
            continue
        a, b = str(row.get("a")), str(row.get("b"))
        for mine, other, sign in ((a, b, 1), (b, a, -1)):
            if mine == setting.encoder and other.split(":")[0] == "random" and not mine.startswith("random"):
                ends = [number(row.get("low")), number(row.get("high"))]
                signed = [None if end is None else sign * end for end in ends][::sign]
                value = number(row.get("difference"))
                return {
                    "value": None if value is None else sign * value,
                    "low": signed[0],
                    "high": signed[1],
                    "p": row.get("p_adjusted", row.get("p")),
                    "against": other,
                }
    return None


def boards(found: Results, rank_published: bool = False) -> Iterator[dict[str, Any]]:
    """One table per task and metric: encoders down, protocols and amounts of labels across.

    Published numbers stand below the measured ones; they are among those of which the best is marked only where
    `rank_published` says so.
    """
    for task in dict.fromkeys(g.setting.task for g in found.groups):
        groups = [g for g in found.groups if g.setting.task == task]
        label = lead_label(groups)
        beside = [_led_by(g, label) for g in found.published_groups if g.setting.task == task]
        columns = list(dict.fromkeys((g.setting.protocol, g.setting.amount) for g in [*groups, *beside]))
        at = {(g.name, g.setting.protocol, g.setting.amount): g for g in [*groups, *beside]}
        others = list(dict.fromkeys(g.name for g in beside))
        tables = []
        for metric in found.metrics(task):
            ranked = found.encoder_names + (others if rank_published else [])
            marks = _marks(at, columns, ranked, metric, label)
            rows = [
                (name, [(at.get((name, *column)), marks.get((name, *column), "")) for column in columns])
                for name in [*found.encoder_names, *others]
                if any(_belongs(at.get((name, *column)), metric) for column in columns)
            ]
            tables.append({"metric": metric, "rows": rows})
        yield {
            "task": task,
            "label": label,
            "columns": [(*column, i) for i, column in enumerate(columns)],
            "tables": tables,
            "config": found.tasks.get(task, {}),
        }


def _belongs(group: Group | None, metric: str) -> bool:
    """Return whether a group is shown in the table of a metric: a published one where it has that metric."""
    return group is not None and (not group.source or any(score.metric == metric for score in group.scores))


def _led_by(group: Group, label: str) -> Group:
    """Return a published group whose mean over labels is called by the label that leads the task."""
    return replace(group, scores=tuple(replace(s, label=label) if s.label == "macro" else s for s in group.scores))


def all_results(found: Results) -> Iterator[dict[str, Any]]:
    """One table of every setting and label for the tasks that share their metrics."""
    tasks: dict[tuple[str, ...], list[str]] = {}
    for task in dict.fromkeys(g.setting.task for g in found.groups):
        tasks.setdefault(tuple(found.metrics(task)), []).append(task)
    for place, (metrics, names) in enumerate(tasks.items()):
        groups = [group for group in found.groups if group.setting.task in names]
        yield {
            "id": f"all-table-{place}" if place else "all-table",
            "metrics": metrics,
            "groups": groups,
            "tasks": names,
        }


def _marks(at: dict[Any, Group], columns: list[Any], names: list[str], metric: str, label: str) -> dict[Any, str]:
    """`best` for the best value of a column, `tied` where the interval overlaps that of the best."""
    marks = {}
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for column in columns:
        scores = {name: s for name in names if (name, *column) in at and (s := at[name, *column].score(metric, label))}
        if len(scores) < 2:
            continue
        best = max(scores, key=lambda name: sign * (scores[name].value or 0))
        for name, score in scores.items():
            overlap = score.overlaps(scores[best])
            marks[name, *column] = "best" if name == best else "tied" if overlap else ""
    return marks


def efficiency_charts(found: Results, looks: dict[str, Style]) -> Iterator[dict[str, Any]]:
    """Yield one chart per task and protocol with more than one amount of labels."""
    for task in dict.fromkeys(g.setting.task for g in found.groups):
        for protocol in dict.fromkeys(g.setting.protocol for g in found.groups if g.setting.task == task):
            groups = [g for g in found.groups if (g.setting.task, g.setting.protocol) == (task, protocol)]
            label = lead_label(groups)
            chart = efficiency(groups, found.primary(task), label, looks)
            if chart:
                names = [name for name in looks if any(g.setting.encoder == name and g.cells for g in groups)]
                yield {"task": task, "protocol": protocol, "label": label, "chart": chart, "names": names}


def curve_charts(found: Results, looks: dict[str, Style]) -> Iterator[dict[str, Any]]:
    """Yield ROC, reliability and decision plots per task, protocol and label, with all training labels."""
    for task, protocol, groups in panels(found):
        labels = [n for n in dict.fromkeys(s.label for g in groups for s in g.scores) if n != "macro"]
        answers = read_groups(groups)
        for label in labels:
            drawn = curves(answers, label, looks, found.suite)
            if drawn:
                yield {
                    "task": task,
                    "protocol": protocol,
                    "label": label,
                    "roc": drawn.roc,
                    "reliability": drawn.reliability,
                    "decision": drawn.decision,
                    "groups": groups,
                }


def comparisons(found: Results) -> Iterator[dict[str, Any]]:
    """Yield the paired comparisons with their numbers checked."""
    single = {name for name, task in found.tasks.items() if len(task.get("labels", [])) == 1}
    many = len(found.comparisons) > MOST_COMPARISONS
    for row in found.comparisons:
        if many and row.get("task") not in single and row.get("label") != "macro":
            continue
        if row.get("task") in single and row.get("label") == "macro":
            continue  # the mean over one label is that label
        shots = int(row.get("shots") or 0)
        fraction = number(row.get("fraction"))
        free = str(row.get("protocol")) == "zero_shot"
        amount = f"{shots} shots" if shots else "no labels" if free else f"{100 * (fraction or 1.0):.4g} %"
        yield {
            **{key: row.get(key) for key in ("task", "protocol", "metric", "label", "a", "b", "test")},
            "amount": amount,
        } | {key: number(row.get(key)) for key in ("difference", "low", "high", "p", "p_adjusted", "n")}


def prompts(found: Results) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the prompts of tasks that were run zero-shot."""
    run = [group for group in found.groups if group.setting.protocol == "zero_shot"]
    used = {group.setting.task for group in run}
    made = {group.setting.task: _made(group.cells[0].result) for group in run if group.cells}
    for name, task in found.tasks.items():
        asked = made.get(name) or [label.get("prompts") for label in task.get("labels", [])]
        pairs = zip(task.get("labels", []), asked, strict=False)
        labels = [{**label, "prompts": prompts} for label, prompts in pairs if prompts]
        if labels and name in used:
            yield name, labels


def _made(result: dict[str, Any]) -> list[dict[str, list[str]]]:
    """Return the prompts of each label that were made for a cell; none where the task has its own."""
    made = result.get("config", {}).get("settings", {}).get("made_prompts")
    sides: list[list[list[str]]] = made or [[], []]
    return [{"positive": ours, "negative": theirs} for ours, theirs in zip(*sides, strict=False)]


def examples(found: Results, looks: dict[str, Style]) -> list[dict[str, Any]]:
    """Example images with their labels and each encoder's score for every label of the task."""
    frames: list[tuple[Setting, Any]] = []
    for _, _, groups in panels(found):
        for group in groups:
            if group.cells and (frame := read_predictions(group.cells[0])) is not None and _has_scores(frame):
                frames.append((group.setting, frame.set_index(frame["sample_id"].astype(str))))
        if frames:
            break
    examples = []
    for entry in found.examples:
        sample = str(entry.get("sample_id"))
        path = found.root / "examples" / str(entry.get("file", ""))
        path = path if path.is_file() else found.root / str(entry.get("file", ""))
        if not path.is_file():
            continue
        from PIL import Image

        try:
            with Image.open(path) as image:
                grey = image.convert("L")
                grey.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
                pixels = np.asarray(grey)
        except OSError as error:
            logger.warning("example image %s left out: %s", sample, error)
            continue
        tables = []
        for label, value in (entry.get("labels") or {}).items():
            scores = [
                (setting.encoder, setting.id, float(frame[f"score:{label}"][sample]))
                for setting, frame in frames
                if f"score:{label}" in frame and sample in frame.index
            ]
            if scores or value == 1:
                tables.append({"label": label, "value": number(value), "scores": scores})
        examples.append(
            {"sample": sample, "dataset": entry.get("dataset"), "image": data_uri(pixels), "labels": tables}
        )
    return examples


def _has_scores(frame: Any) -> bool:
    return any(str(column).startswith("score:") for column in frame.columns)
