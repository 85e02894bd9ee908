"""Mean ranks of encoders over the settings of a suite, and which of them were shown to differ.

Guarantee: all encoders are ranked over the same settings, in a resample on the same patients and draws. A data set
counts once, however many settings it has. What is left out for want of a value is named. With five data sets or more a
pair differs where Nemenyi's test says so; with fewer, where the bootstrap of its rank difference does, corrected for
the number of pairs, and then for the patients of these data sets alone.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.baselines import FEATURES
from medvlp.bench.comparisons import Rules, by_setting
from medvlp.bench.report_scores import LOWER_IS_BETTER
from medvlp.bench.scored import MACRO
from medvlp.bench.stats import RULE, columns_of, values_of
from medvlp.metrics.comparison import adjusted, bootstrap_p
from medvlp.metrics.ranking import block_means, cliques, critical_difference, friedman, rank_interval, ranks

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished

Where = tuple[str, str, float, int]
NEMENYI_BLOCKS = 5
"""Data sets from which on Nemenyi's test is used."""


def rank_table(cells: Iterable[Finished], order: Sequence[str], rules: Rules) -> dict[str, Any] | None:
    """Return `ranks.json`: the mean rank of every encoder by the leading metric's macro mean, with interval and tests.

    Baselines that see no image are not ranked. None where fewer than two encoders share a setting.

    Args:
        cells: Finished cells.
        order: Encoder names; equal ranks stand in this order.
        rules: Coverage and correction.
    """
    settings = {
        where: {name: own for name, own in encoders.items() if name not in FEATURES and _has_value(own)}
        for where, encoders in by_setting(cells).items()
    }
    chosen, names = _shared(settings)
    alike = {where: _over_common_draws(settings[where], names) for where in chosen}
    chosen = [where for where in chosen if alike[where]]
    if len(names) < 2 or not chosen:
        return None
    place = {name: i for i, name in enumerate(order)}
    names.sort(key=lambda name: (place.get(name, len(place)), name))
    datasets = [settings[where][names[0]][0].record["dataset"] for where in chosen]
    by_where = [_ranks(where, [alike[where][name] for name in names]) for where in chosen]
    _, table = block_means(np.stack([row for row, _ in by_where]), datasets)
    blocks, resampled = block_means(np.stack([row for _, row in by_where]), datasets)
    mean, drawn = table.mean(axis=0), resampled.mean(axis=0)
    test = "Nemenyi over data sets" if len(blocks) >= NEMENYI_BLOCKS else "bootstrap over patients"
    difference = critical_difference(len(names), len(blocks), rules.alpha)
    pairs = _pairs(names, mean, drawn, table, difference if len(blocks) >= NEMENYI_BLOCKS else None, rules)
    separated = np.zeros((len(names), len(names)), dtype=bool)
    for row in pairs:
        a, b = names.index(row["a"]), names.index(row["b"])
        separated[a, b] = separated[b, a] = row["differ"]
    best_first = np.argsort(mean, kind="stable").tolist()
    overall = friedman(table)
    bounds = [rank_interval(float(mean[i]), drawn[:, i], rules.alpha) for i in range(len(names))]
    return {
        "rule": RULE,
        "encoders": [
            {"encoder": names[i], "rank": float(mean[i]), "low": bounds[i].low, "high": bounds[i].high}
            for i in best_first
        ],
        "not_told_apart": [
            [names[i] for i in best_first[first : last + 1]] for first, last in cliques(best_first, separated)
        ],
        "test": test,
        "datasets": [str(block) for block in blocks],
        "settings": [dict(zip(("task", "protocol", "fraction", "shots"), where, strict=True)) for where in chosen],
        "friedman": {"chi_square": overall.chi_square, "f": overall.f, "p": overall.p},
        "critical_difference": difference,
        "pairs": pairs,
        "left_out": _left_out(settings, chosen, names),
    }


def _has_value(members: Sequence[Finished]) -> bool:
    return all(not np.isnan(values_of(member).get((member.leading, MACRO), np.nan)) for member in members)


def _shared(settings: dict[Where, dict[str, list[Finished]]]) -> tuple[list[Where], list[str]]:
    """Return settings and encoders without a gap, as many numbers as can be had by leaving out encoders one by one.

    An encoder that few settings have is left out before one that many have.
    """
    names = list(dict.fromkeys(name for own in settings.values() for name in own))
    best: tuple[list[Where], list[str]] = ([], [])
    names.sort(key=lambda name: -sum(name in own for own in settings.values()))
    while len(names) > 1:
        chosen = [where for where, own in settings.items() if set(names) <= set(own)]
        if len(chosen) * len(names) > len(best[0]) * len(best[1]):
            best = (chosen, list(names))
        names.pop()
    return best


def _over_common_draws(encoders: dict[str, list[Finished]], names: Sequence[str]) -> dict[str, list[Finished]]:
    """Return the cells of the draws that all encoders have; empty where there is none."""
    common = set.intersection(*({cell.record["draw"] for cell in encoders[name]} for name in names))
    kept = {name: [cell for cell in encoders[name] if cell.record["draw"] in common] for name in names}
    return kept if common else {}


def _ranks(where: Where, encoders: Sequence[Sequence[Finished]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of encoders in one setting `[e]`, and in every resample `[r e]`."""
    metric = encoders[0][0].leading
    lower = metric in LOWER_IS_BETTER
    values = np.array([np.mean([values_of(cell)[metric, MACRO] for cell in members]) for members in encoders])
    column = columns_of(encoders[0][0]).index(MACRO)
    drawn = np.stack([_resampled(where, members, metric, column) for members in encoders], axis=1)
    return ranks(np.round(values, 12), lower), ranks(np.round(drawn, 12), lower)


def _resampled(where: Where, members: Sequence[Finished], metric: str, column: int) -> np.ndarray:
    """Return the mean over cells in each resample `[r]`, in which draws are drawn again, the same for all encoders.

    Deviations from the mean over draws are stretched by sqrt(d / (d - 1)), without which d draws vary too little.
    """
    by_draw: dict[int, list[np.ndarray]] = {}
    for member in members:
        by_draw.setdefault(member.record["draw"], []).append(member.bootstrap[metric][:, column])
    draws = np.stack([np.mean(by_draw[draw], axis=0) for draw in sorted(by_draw)])
    count, number = draws.shape
    if count == 1:
        return draws[0]
    seed = zlib.crc32(repr((where, count)).encode())
    chosen = np.random.default_rng(seed).integers(0, count, size=(number, count))
    mean = draws.mean(axis=0)
    again = draws[chosen, np.arange(number)[:, None]].mean(axis=1)
    return mean + np.sqrt(count / (count - 1)) * (again - mean)


def _pairs(
    names: Sequence[str],
    mean: np.ndarray,
    drawn: np.ndarray,
    table: np.ndarray,
    difference: float | None,
    rules: Rules,
) -> list[dict[str, Any]]:
    """Return every pair with its rank difference and whether it was shown to differ."""
    placed = ranks(table, lower_is_better=True).mean(axis=0)
    rows: list[dict[str, Any]] = []
    for a, b in itertools.combinations(range(len(names)), 2):
        apart = float(mean[a] - mean[b])
        p = bootstrap_p(apart, drawn[:, a] - drawn[:, b])
        rows.append({"a": names[a], "b": names[b], "difference": apart, "p": p})
        if difference is not None:
            rows[-1]["differ"] = bool(abs(placed[a] - placed[b]) >= difference)
    for row, p in zip(rows, adjusted([row["p"] for row in rows], rules.correction), strict=True):
        row["p_adjusted"] = p
        row.setdefault("differ", bool(p < rules.alpha))
    return rows


def _left_out(
    settings: dict[Where, dict[str, list[Finished]]], chosen: Sequence[Where], names: Sequence[str]
) -> dict[str, Any]:
    others = dict.fromkeys(name for own in settings.values() for name in own if name not in names)
    keys = ("task", "protocol", "fraction", "shots")
    return {
        "encoders": list(others),
        "settings": [dict(zip(keys, where, strict=True)) for where in settings if where not in chosen],
    }
