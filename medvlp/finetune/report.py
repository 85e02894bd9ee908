"""The report of a fine-tuning: one self-contained page.

Guarantee: every number follows from `result.json` and the kept predictions; no id of a patient or image and no path of
a machine is on the page: an image is named by its row in `predictions/test.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.cells import as_json
from medvlp.bench.report_charts import strip_axis, strip_style
from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS
from medvlp.finetune.card import rule_of, unit_of
from medvlp.finetune.charts import curves, progress
from medvlp.finetune.mistakes import ABOUT, mistakes
from medvlp.finetune.outcome import CHANCE, USUAL
from medvlp.finetune.texts import side_by_side
from medvlp.html import render_page, write_page
from medvlp.html.charts import Style
from medvlp.html.numbers import count, decimal
from medvlp.html.private import public
from medvlp.metrics.subgroups import NOT_KNOWN
from medvlp.tasks.report_generation import Reports
from medvlp.track.jsonl import read_lines

if TYPE_CHECKING:
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.finetune.outcome import Outcome
    from medvlp.store.array_store import Store
    from medvlp.tasks._tuned import TunedModel

LOOK = Style("var(--series-1)")


def write_report(
    html: Path, config: FinetuneConfig, model: TunedModel, result: dict[str, Any], outcome: Outcome, store: Store
) -> None:
    """Write the page.

    Args:
        html: Target; `metrics.jsonl` of the run lies beside it.
        config: The run.
        model: What is saved.
        result: `result.json`.
        outcome: Predictions behind it.
        store: The store, for pictures.

    Raises:
        UserError: The page cannot be written.
    """
    context = {
        "title": ", ".join(model.label_names) or ("Questions" if config.task == "vqa" else "Reports"),
        "task": config.task,
        "coverage": f"{100 * (1 - config.alpha):g} %",
        "one_in": round(2 / config.alpha),
        "facts": list(_facts(config, result)),
        "notes": result["notes"],
        "headline": _headline(result["scores"], result["usual"]),
        "usual": {metric: value for metric, value in result["usual"].items() if np.isfinite(value)},
        "usual_name": next((USUAL[metric] for metric in result["usual"] if metric in USUAL), ""),
        "metrics": list(dict.fromkeys(row["metric"] for row in result["scores"])),
        "table": _table(result["scores"]),
        "thresholds": {one.label: one.threshold for one in outcome.decisions},
        "metric_names": METRICS,
        "lower_is_better": LOWER_IS_BETTER,
        "progress": progress(read_lines(html.with_name("metrics.jsonl")), result["chosen"]),
        "curves": list(curves(config, outcome, store.dataset)),
        "balance": _balance(result["balance"]),
        "gaps": _gaps(result["subgroups"]),
        "mistakes": mistakes(outcome, store, model.task),
        "mistakes_about": ABOUT.get(config.task, ""),
        "texts": list(_texts(model, outcome, store)),
        "chosen": list(_chosen(config, result)),
        "style": strip_style(LOOK),
        "record": as_json(public({"config": config.resolved(), **{k: result[k] for k in ("record", "decisions")}})),
        "made_by": f"medvlp {result['record']['versions']['medvlp']}",
    }
    context["sections"] = [(key, name) for key, name in _SECTIONS if key in ("chosen", "record") or context.get(key)]
    write_page(html, render_page("medvlp.finetune", "report.html.j2", **context))


_SECTIONS = (
    ("headline", "Scores"),
    ("curves", "ROC and calibration"),
    ("gaps", "Subgroups"),
    ("mistakes", "Mistakes"),
    ("texts", "Reports"),
    ("progress", "Training"),
    ("balance", "Labels"),
    ("chosen", "What was chosen"),
    ("record", "Record"),
)


def _facts(config: FinetuneConfig, result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    record, chosen = result["record"], result["chosen"]
    yield "Data set", record["dataset"], f"store {record['store_hash'][:12]}"
    yield "Encoder", record["encoder"], record["encoder_hash"][:12]
    for split, found in record["samples"].items():
        studies = "" if found["samples"] == found["images"] else f"{count(found['samples'])} {unit_of(config)}, "
        yield f"{split.capitalize()} images", count(found["images"]), f"of {studies}{count(found['patients'])} patients"
    criterion = next(name for name in chosen if name.startswith("val_"))
    yield (
        "Kept",
        f"epoch {chosen['epoch'] + 1}",
        f"validation {METRICS.get(criterion[4:], criterion[4:])} {decimal(chosen[criterion])}",
    )


def _headline(rows: Sequence[dict[str, Any]], usual: dict[str, float]) -> dict[str, Any]:
    """Return the leading metric of every label, as an interval plot with chance, or the usual report's score."""
    metric = rows[0]["metric"]
    own = [row for row in rows if row["metric"] == metric]
    if len(own) == 2:
        own = own[:1]  # the mean over one label is that label
    chance = CHANCE.get(metric, usual.get(metric))
    chance = chance if chance is not None and np.isfinite(chance) else None
    bounds = [row[key] for row in own for key in ("value", "low", "high") if np.isfinite(row[key])]
    return {
        "metric": metric,
        "rows": [_finite(row) for row in own],
        "axis": strip_axis(bounds, chance),
        "chance": chance,
    }


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return label -> metric -> row."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["label"], {})[row["metric"]] = _finite(row)
    if len(found) == 2:
        found.pop("macro")
    return found


def _texts(model: TunedModel, outcome: Outcome, store: Store) -> Iterator[dict[str, Any]]:
    """Yield test studies with both reports."""
    if isinstance(outcome.test, Reports):
        yield from side_by_side(outcome.test, model.task, store, outcome.groups, NOT_KNOWN)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return json.loads(as_json(row))


def _balance(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Return label -> split -> counts."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        known = row["positives"] + row["negatives"]
        share = row["positives"] / known if known else None
        found.setdefault(row["label"], {})[row["split"]] = row | {"share": share}
    return list(found.items())


def _gaps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one table per attribute and label: groups down, metrics across."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for row in map(_finite, rows):
        key = row["attribute"], row["label"]
        table = tables.setdefault(key, {"attribute": key[0], "label": key[1], "metrics": [], "groups": {}})
        if row["metric"] not in table["metrics"]:
            table["metrics"].append(row["metric"])
        table["groups"].setdefault(row["name"], {})[row["metric"]] = row
    return [table for table in tables.values() if _comparable(table)]


def _comparable(table: dict[str, Any]) -> bool:
    """Return whether two groups or more have a score."""
    return sum(rows[table["metrics"][0]]["value"] is not None for rows in table["groups"].values()) > 1


def _chosen(config: FinetuneConfig, result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was chosen, on which split, how."""
    history, decided = result["chosen"]["history"], config.decision
    criterion = next(name for name in history[0] if name.startswith("val_"))[4:]
    yield (
        "Weights of encoder and head",
        "train",
        "gradient descent" + ("; the encoder stayed as it was" if config.train.freeze_encoder else ""),
    )
    yield "Which state is kept", "val", f"highest {METRICS.get(criterion, criterion)} of {len(history)} validations"
    if result["decisions"]:
        yield "Calibration", "val", decided.calibration
        yield "Thresholds", "val", rule_of(config)
    yield "Scores, intervals, gaps on this page", "test", "nothing was chosen there"
    yield "Learning rate, epochs, augmentation", "none", "taken from the configuration"
    yield "Splits", "none", result["record"]["split_rule"]
