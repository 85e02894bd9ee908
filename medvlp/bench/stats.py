"""Scores over seeds and draws, and paired comparisons of encoders.

Guarantee: an interval of a mean over draws covers the choice of test patients, which all its cells share in a
resample, and the choice of training draws; a comparison pairs two encoders resample by resample, over the draws that
both have. p values are corrected by Holm over
all comparisons of the suite of one family: `macro` (one comparison per pair of encoders and setting), and `label`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.baselines import FEATURES
from medvlp.metrics.bootstrap import interval
from medvlp.metrics.comparison import holm, paired_difference
from medvlp.metrics.delong import delong_test

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def group(cells: Iterable[Finished]) -> dict[tuple[str, str, float, int, str], list[Finished]]:
    """Return the cells of each (task, protocol, fraction, shots, encoder), ordered by seed and draw."""
    groups: dict[tuple[str, str, float, int, str], list[Finished]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.record["seed"], cell.record["draw"], cell.folder.name)):
        groups.setdefault(cell.setting, []).append(cell)
    return groups


def aggregate(cells: Iterable[Finished], alpha: float) -> list[dict[str, Any]]:
    """Return the rows of `aggregate.json`: each score as mean over the seeds and draws of a setting.

    `sd` is the standard deviation over cells (null for one cell).
    """
    rows = []
    for members in group(cells).values():
        record, first = members[0].record, members[0].result["scores"]
        columns = [row["label"] for row in first if row["metric"] == first[0]["metric"]]
        for position, score in enumerate(first):
            values = np.array([_number(member.result["scores"][position]["value"]) for member in members])
            metric, column = score["metric"], columns.index(score["label"])
            low, high, left_out = score["low"], score["high"], score["left_out"]
            if len(members) > 1:
                bounds = interval(_over_draws([member.bootstrap[metric][:, column] for member in members]), alpha)
                low, high, left_out = bounds.low, bounds.high, bounds.left_out
            value = float(values.mean())
            rows.append(
                {
                    **{key: record[key] for key in ("task", "task_version", "dataset", "encoder", "protocol")},
                    "fraction": record["fraction"],
                    "shots": record["shots"],
                    "metric": metric,
                    "label": score["label"],
                    "value": value,
                    "low": float("nan") if math.isnan(value) else low,
                    "high": float("nan") if math.isnan(value) else high,
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "n": score["n"],
                    "positives": score["positives"],
                    "seeds": len({member.record["seed"] for member in members}),
                    "draws": len({member.record["draw"] for member in members}),
                    "cells": [member.folder.name for member in members],
                    "left_out": left_out,
                    "chance": score.get("chance"),
                    "hashes": _common_hashes(members),
                    "status": "ok",
                }
            )
    return rows


def _common_hashes(members: Sequence[Finished]) -> dict[str, Any]:
    """Return the hashes of a group: one where all cells agree, else the list."""
    found: dict[str, Any] = {}
    for key in members[0].record["hashes"]:
        values = list(dict.fromkeys(member.record["hashes"][key] for member in members))
        found[key] = values[0] if len(values) == 1 else values
    return found


def missing_rows(
    planned: Iterable[tuple[tuple[str, str, float, int, str], int, str]],
    present: set[tuple[str, str, float, int, str]],
    leading: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row without a value for each planned setting that has no cell.

    Args:
        planned: (setting, task version, reason) of all that the suite asks for.
        present: Settings that have a cell.
        leading: Task -> its leading metric.
    """
    rows: dict[tuple[str, str, float, int, str], dict[str, Any]] = {}
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


def compare(cells: Iterable[Finished], order: Sequence[str], alpha: float) -> list[dict[str, Any]]:
    """Return the rows of `comparisons.json`.

    Every pair of encoders in every setting, also against the random one and against each baseline; baselines are not
    compared with each other.

    Args:
        cells: Finished cells.
        order: Encoder names; of a pair the earlier one is `a`.
        alpha: One minus the coverage of intervals.
    """
    settings: dict[tuple[str, str, float, int], dict[str, list[Finished]]] = {}
    for (task, protocol, fraction, shots, encoder), members in group(cells).items():
        settings.setdefault((task, protocol, fraction, shots), {})[encoder] = members
    rank = {name: i for i, name in enumerate(order)}
    rows: list[dict[str, Any]] = []
    for setting, encoders in settings.items():
        names = sorted(encoders, key=lambda name: (rank.get(name, len(rank)), name))
        for a, b in itertools.combinations(names, 2):
            if not (a in FEATURES and b in FEATURES):
                rows += _pair(setting, a, encoders[a], b, encoders[b], alpha)
    for family in ("macro", "label"):
        same = [row for row in rows if row["family"] == family]
        for row, adjusted in zip(same, holm([row["p"] for row in same]), strict=True):
            row["p_holm"] = adjusted
            row["comparisons"] = len(same)
    return rows


def _pair(
    setting: tuple[str, str, float, int], a: str, cells_a: list[Finished], b: str, cells_b: list[Finished], alpha: float
) -> list[dict[str, Any]]:
    draws = sorted({cell.record["draw"] for cell in cells_a} & {cell.record["draw"] for cell in cells_b})
    if not draws:
        return []
    cells_a, cells_b = ([cell for cell in cells if cell.record["draw"] in draws] for cells in (cells_a, cells_b))
    task, protocol, fraction, shots = setting
    metric = cells_a[0].leading
    scores = [row for row in cells_a[0].result["scores"] if row["metric"] == metric]
    rows = []
    for column, score in enumerate(scores):
        label = score["label"]
        value_a, value_b = (_mean_value(cells, draws, label) for cells in (cells_a, cells_b))
        found = paired_difference(
            value_a - value_b, _mean_resamples(cells_a, draws, column), _mean_resamples(cells_b, draws, column), alpha
        )
        rows.append(
            {
                "task": task,
                "protocol": protocol,
                "fraction": fraction,
                "shots": shots,
                "metric": metric,
                "label": label,
                "family": "macro" if label == "macro" else "label",
                "a": a,
                "b": b,
                "value_a": value_a,
                "value_b": value_b,
                "difference": value_a - value_b,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "p_delong": _delong(cells_a, cells_b, label, alpha),
                "n": score["n"],
                "draws": len(draws),
                "left_out": found.left_out,
                "test": "paired bootstrap over patients",
            }
        )
    return rows


def _by_draw(cells: list[Finished], draws: list[int]) -> list[list[Finished]]:
    return [[cell for cell in cells if cell.record["draw"] == draw] for draw in draws]


def _mean_value(cells: list[Finished], draws: list[int], label: str) -> float:
    """Return the mean over draws of the mean over seeds."""
    values = [
        np.mean(
            [
                _number(row["value"])
                for cell in members
                for row in cell.result["scores"]
                if row["metric"] == cell.leading and row["label"] == label
            ]
        )
        for members in _by_draw(cells, draws)
    ]
    return float(np.mean(values))


def _mean_resamples(cells: list[Finished], draws: list[int], column: int) -> np.ndarray:
    means = [
        np.mean([cell.bootstrap[cell.leading][:, column] for cell in members], axis=0)
        for members in _by_draw(cells, draws)
    ]
    return _over_draws(means)


def _over_draws(resamples: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over draws `[r]` in each resample, with the draws themselves drawn again.

    Another few training samples would have given another mean: an interval over patients alone would hide that. Which
    draws enter a resample depends on the two counts alone, so that both sides of a comparison share them.
    """
    values = np.stack(resamples)
    count, number = values.shape
    chosen = np.random.default_rng(count).integers(0, count, size=(number, count))
    return values[chosen, np.arange(number)[:, None]].mean(axis=1)


def _delong(cells_a: list[Finished], cells_b: list[Finished], label: str, alpha: float) -> float | None:
    """Return DeLong's p, where it holds: one cell each, one image per patient, two samples of each class."""
    if label == "macro" or len(cells_a) > 1 or len(cells_b) > 1 or cells_a[0].leading != "auroc":
        return None
    first, second = cells_a[0].predictions, cells_b[0].predictions
    if len(set(first.patient_ids)) < len(first.patient_ids) or list(first.sample_ids) != list(second.sample_ids):
        return None
    k = list(first.label_names).index(label)
    labels = first.labels[:, k]
    if min((labels == 1).sum(), (labels == 0).sum()) < 2:
        return None
    return delong_test(labels, first.scores[:, k], second.scores[:, k], alpha).p
