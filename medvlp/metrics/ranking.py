"""Mean ranks of encoders over settings, with intervals, and tests of whether they differ.

Guarantee: a rank interval comes from resamples in which all encoders are ranked on the same patients. The tests take
independent blocks (data sets); settings that share patients are averaged within their block first. No place in a table
is called better than another by its rank alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvlp.metrics.intervals import Interval, percentile_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def ranks(values: Float[np.ndarray, "*s e"], lower_is_better: bool = False) -> Float[np.ndarray, "*s e"]:
    """Return ranks from 1, the best, along the last axis; equal values share the mean of their ranks.

    NaN wherever one encoder of a row has no value: a rank among others than those is another rank.
    """
    found = stats.rankdata(values if lower_is_better else -np.asarray(values), axis=-1)
    return np.where(np.isnan(values).any(axis=-1, keepdims=True), np.nan, found)


def rank_interval(rank: float, resampled: Float[np.ndarray, " r"], alpha: float = 0.05) -> Interval:
    """Return the percentile interval of a mean rank, stretched to the rank itself where that lies outside.

    Resampling adds noise, which draws the first and the last rank towards the middle.
    """
    bounds = percentile_interval(resampled, alpha)
    if np.isnan(bounds.low) or np.isnan(rank):
        return Interval.unknown(bounds.left_out)
    return Interval(min(bounds.low, rank), max(bounds.high, rank), bounds.left_out)


@dataclass(frozen=True, slots=True)
class Friedman:
    """Test of whether encoders differ at all: Friedman's chi-square, and its F by Iman and Davenport (1980)."""

    chi_square: float
    f: float
    p: float
    """Of F; exact where all blocks agree; NaN with fewer than two blocks."""


def friedman(table: Float[np.ndarray, "b e"]) -> Friedman:
    """Test ranks of encoders in blocks, one row per block; rows are ranked again (they may be mean ranks)."""
    placed = ranks(table, lower_is_better=True)
    blocks, count = placed.shape
    if blocks < 2 or count < 2 or np.isnan(placed).any():
        return Friedman(float("nan"), float("nan"), float("nan"))
    deviations = placed.mean(axis=0) - (count + 1) / 2
    # With ties the ranks of a block vary less than those of 1 ... e; without any difference they do not vary at all.
    spread = float(((placed - (count + 1) / 2) ** 2).sum()) / (blocks * (count - 1))
    chi_square = float(blocks * (deviations**2).sum() / spread) if spread > 0 else 0.0
    left = blocks * (count - 1) - chi_square
    if left <= 1e-9:  # F is infinite, and yet few blocks agree by chance, too
        ties = np.unique(placed[0], return_counts=True)[1].tolist()
        orders = math.factorial(count) // math.prod(map(math.factorial, ties))
        return Friedman(chi_square, float("inf"), 1 / orders ** (blocks - 1))
    f = (blocks - 1) * chi_square / left
    return Friedman(chi_square, f, float(stats.f.sf(f, count - 1, (count - 1) * (blocks - 1))))


def critical_difference(encoders: int, blocks: int, alpha: float = 0.05) -> float:
    """Return the difference of two mean ranks from which on Nemenyi's test calls them different.

    q sqrt(e (e + 1) / (6 b)), q the studentised range over sqrt(2) (Demšar, JMLR 2006). NaN with fewer than two blocks.
    """
    if encoders < 2 or blocks < 2:
        return float("nan")
    q = float(stats.studentized_range.isf(alpha, encoders, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(encoders * (encoders + 1) / (6 * blocks)))


def block_means(
    table: Float[np.ndarray, "s e"], blocks: Sequence[Hashable]
) -> tuple[list[Hashable], Float[np.ndarray, "b e"]]:
    """Return the blocks in order of appearance, and the mean of the rows of each."""
    names = list(dict.fromkeys(blocks))
    of = np.array([names.index(block) for block in blocks])
    return names, np.stack([table[of == i].mean(axis=0) for i in range(len(names))])


def cliques(order: Sequence[int], separated: Bool[np.ndarray, "e e"]) -> list[tuple[int, int]]:
    """Return the longest runs (first and last place in `order`) of two or more in which no pair is separated.

    Args:
        order: Encoders from the best to the worst mean rank.
        separated: Whether a pair was shown to differ.
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and not separated[np.ix_(order[first : last + 2], order[first : last + 2])].any():
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
