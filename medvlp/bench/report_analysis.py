"""The sections of a report on calibration and on subgroups of patients, as plain records for their templates.

Guarantee: what was computed is shown or counted, never dropped without a word; a small group is marked as small.
"""

from __future__ import annotations

from typing import Any

from medvlp.bench.report_data import Results, read_json
from medvlp.bench.report_scores import PROTOCOL_NAMES, number

MOST_ROWS = 300
"""Rows of a table on the page; all of them are in the JSON files of the results folder."""


def subgroups(found: Results) -> dict[str, Any] | None:
    """Return the gaps between groups, those that were shown first; None where none were computed."""
    rows = [_gap(row) for row in read_json(found.root / "subgroups.json") or []]
    if not rows:
        return None
    # First what is shown and large, last what is small; groups of one attribute of one encoder stay together.
    order = sorted(rows, key=lambda row: (not row["shown"], row["small"], -abs(row["gap"] or 0.0)))
    blocks = {_block(row): i for i, row in reversed(list(enumerate(order)))}
    rows.sort(key=lambda row: blocks[_block(row)])
    return {"rows": rows[:MOST_ROWS], "all": len(rows), "small": sum(row["small"] for row in rows)}


def _block(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("task", "protocol", "encoder", "label", "attribute"))


def _gap(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("task", "protocol", "encoder", "metric", "label", "attribute", "group", "reference", "small")
    kept = {key: row.get(key) for key in keys}
    kept |= {key: number(row.get(key)) for key in ("n", "patients", "value", "low", "high")}
    kept |= {key: number(row.get(key)) for key in ("gap", "gap_low", "gap_high")}
    low, high = kept["gap_low"], kept["gap_high"]
    kept["is_reference"] = kept["group"] == kept["reference"]
    kept["shown"] = bool(not kept["small"] and low is not None and high is not None and (low > 0 or high < 0))
    kept["protocol"] = PROTOCOL_NAMES.get(str(kept["protocol"]), kept["protocol"])
    return kept


def calibration(found: Results) -> dict[str, Any] | None:
    """Return errors of calibration before and after scaling, one row per cell and label; None where there are none."""
    rows = read_json(found.root / "calibration.json") or []
    shown = [
        {
            **{key: row.get(key) for key in ("task", "encoder", "label", "seed", "draw", "errors", "brier")},
            **{key: row.get(key) for key in ("temperature", "platt")},
            "protocol": PROTOCOL_NAMES.get(str(row.get("protocol")), row.get("protocol")),
        }
        for row in rows
    ]
    return {"rows": shown[:MOST_ROWS], "all": len(shown)} if shown else None
