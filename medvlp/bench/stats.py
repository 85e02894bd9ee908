"""Scores of settings over their seeds and draws, and settings without a score.

Guarantee: the interval of a mean over cells covers the choice of test patients, which all its cells share in a
resample, and the choice of training draws and seeds, as variance components; patients' noise is not counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.scored import MACRO
from medvlp.metrics.classification import RAISED_BY_NOISE
from medvlp.metrics.components import Components, Design
from medvlp.metrics.intervals import Interval, interval

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished

RULE = 3
"""Rises with every change that can move a number of `aggregate.json` or `comparisons.json`; stands in their rows."""
Setting = tuple[str, str, float, int, str]
"""Task, protocol, fraction, shots, encoder."""


def values_of(cell: Finished) -> dict[tuple[str, str], float]:
    """Return (metric, label) -> value, NaN for one that a cell does not have."""
    found = {(row["metric"], row["label"]): row["value"] for row in cell.result["scores"]}
    return {key: math.nan if value is None else float(value) for key, value in found.items()}


def group(cells: Iterable[Finished]) -> dict[Setting, list[Finished]]:
    """Return the cells of each (task, protocol, fraction, shots, encoder), ordered by seed and draw."""
    groups: dict[Setting, list[Finished]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.record["seed"], cell.record["draw"], cell.folder.name)):
        groups.setdefault(cell.setting, []).append(cell)
    return groups


def columns_of(cell: Finished) -> list[str]:
    """Return the labels of a cell in the order of its bootstrap's columns, `macro` last."""
    labels = dict.fromkeys(row["label"] for row in cell.result["scores"])  # a metric may have no value for single ones
    return [*(label for label in labels if label != MACRO), MACRO]


def aggregate(cells: Iterable[Finished], alpha: float) -> list[dict[str, Any]]:
    """Return the rows of `aggregate.json`: each score as mean over the seeds and draws of a setting.

    `sd` is the standard deviation over cells (null for one cell). `components` are standard deviations: of the mean by
    the choice of test patients; of a single draw, of a single seed, and of what is left of a cell.
    """
    rows = []
    for members in group(cells).values():
        record, columns = members[0].record, columns_of(members[0])
        of = [values_of(member) for member in members]
        for score in members[0].result["scores"]:
            values = np.array([found.get((score["metric"], score["label"]), math.nan) for found in of])
            bounds, components = _over_cells(members, score, values, columns.index(score["label"]), alpha)
            rows.append(
                {
                    **{key: record[key] for key in ("task", "task_version", "dataset", "encoder", "protocol")},
                    "fraction": record["fraction"],
                    "shots": record["shots"],
                    "metric": score["metric"],
                    "label": score["label"],
                    "value": float(values.mean()),
                    "low": bounds.low,
                    "high": bounds.high,
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "components": components,
                    "n": score["n"],
                    "positives": score["positives"],
                    "support": score.get("support"),
                    "seeds": len({member.record["seed"] for member in members}),
                    "draws": len({member.record["draw"] for member in members}),
                    "cells": [member.folder.name for member in members],
                    "left_out": bounds.left_out,
                    "chance": score.get("chance"),
                    "hashes": _common_hashes(members),
                    "status": "ok",
                    "rule": RULE,
                }
            )
    return rows


def _over_cells(
    members: Sequence[Finished], score: dict[str, Any], values: np.ndarray, column: int, alpha: float
) -> tuple[Interval, dict[str, float | None]]:
    """Return the interval of the mean over cells, and its components as standard deviations."""
    metric, support = score["metric"], score.get("support")
    if np.isnan(values).any():
        return Interval.unknown(), {}
    resampled = np.stack([member.bootstrap[metric][:, column] for member in members])
    weights = np.full(len(members), 1 / len(members))
    found = components_of(values, resampled, weights, members)
    if found is None:
        return Interval.unknown(len(resampled[0])), {}
    value = float(values.mean())
    mean_without = np.mean([member.jackknife[metric][:, column] for member in members], axis=0)
    over_patients = interval(value, resampled.mean(axis=0), mean_without, alpha, support, metric in RAISED_BY_NOISE)
    bounds = within_range(found.widen(value, over_patients, alpha), support)
    named = {name: math.sqrt(variance) for name, variance in found.variances.items()}
    return bounds, {"patients": math.sqrt(found.patients), **named}


def components_of(
    values: np.ndarray,
    resampled: np.ndarray,
    weights: np.ndarray,
    members: Sequence[Finished],
    encoders: Sequence[str] | None = None,
) -> Components | None:
    """Return the variance components of a weighted sum of cells, None where no resample has a value.

    Args:
        values: Score of each cell `[c]`.
        resampled: Their values in the same resamples `[c r]`.
        weights: Of the cells `[c]`.
        members: The cells.
        encoders: Encoder of each, where there are two: their difference has components of its own.
    """
    known = ~np.isnan(resampled).any(axis=0)
    if known.sum() < 2:
        return None
    draws, seeds = (tuple(member.record[key] for member in members) for key in ("draw", "seed"))
    design = _design(draws, seeds, tuple(weights.tolist()), None if encoders is None else tuple(encoders))
    return design.components(values, np.atleast_2d(np.cov(resampled[:, known])))


@lru_cache(maxsize=256)
def _design(
    draws: tuple[int, ...], seeds: tuple[int, ...], weights: tuple[float, ...], encoders: tuple[str, ...] | None
) -> Design:
    factors: dict[str, Sequence[Hashable]] = {"draws": draws, "seeds": seeds}
    if encoders is not None:
        own = {f"{name} of an encoder": list(zip(encoders, levels, strict=True)) for name, levels in factors.items()}
        factors = {**factors, **own}
    return Design(factors, np.array(weights), encoders)


def within_range(bounds: Interval, support: int | None) -> Interval:
    """Return the interval of a share, cut at 0 and 1; that of another score as it is."""
    if support is None:
        return bounds
    return Interval(max(bounds.low, 0.0), min(bounds.high, 1.0), bounds.left_out)


def _common_hashes(members: Sequence[Finished]) -> dict[str, Any]:
    """Return the hashes of a group: one where all cells agree, else the list."""
    found: dict[str, Any] = {}
    for key in members[0].record["hashes"]:
        values = list(dict.fromkeys(member.record["hashes"][key] for member in members))
        found[key] = values[0] if len(values) == 1 else values
    return found


def missing_rows(
    planned: Iterable[tuple[Setting, int, str]],
    present: set[Setting],
    leading: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row without a value for each planned setting that has no cell.

    Args:
        planned: (setting, task version, reason) of all that the suite asks for.
        present: Settings that have a cell.
        leading: Task -> its leading metric.
    """
    rows: dict[Setting, dict[str, Any]] = {}
    for setting, version, reason in planned:
        if setting not in present and setting not in rows:
            task, protocol, fraction, shots, encoder = setting
            rows[setting] = {
                "task": task,
                "task_version": version,
                "encoder": encoder,
                "protocol": protocol,
                "fraction": fraction,
                "shots": shots,
                "metric": leading[task],
                "label": "macro",
                "value": None,
                "low": None,
                "high": None,
                "n": None,
                "seeds": 0,
                "draws": 0,
                "status": reason,
            }
    return list(rows.values())
