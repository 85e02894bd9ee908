"""Ranks, Friedman and Nemenyi against scipy and published tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medvlp.metrics.ranking import block_means, cliques, critical_difference, friedman, rank_interval, ranks


def test_ranks_put_the_best_first_and_share_ties() -> None:
    values = np.array([[0.9, 0.7, 0.9, 0.1], [0.2, np.nan, 0.3, 0.4]])
    np.testing.assert_array_equal(ranks(values), [[1.5, 3, 1.5, 4], [np.nan] * 4])
    np.testing.assert_array_equal(ranks(values[:1], lower_is_better=True), [[3.5, 2, 3.5, 1]])


@pytest.mark.parametrize("ties", [False, True])
def test_friedman_equals_scipy_and_iman_and_davenport_by_hand(ties: bool) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(9, 5)) + np.arange(5) * 0.4
    table = np.round(table) if ties else table
    expected = stats.friedmanchisquare(*table.T)
    found = friedman(table)
    assert found.chi_square == pytest.approx(expected.statistic)
    f = 8 * expected.statistic / (9 * 4 - expected.statistic)
    assert found.f == pytest.approx(f)
    assert found.p == pytest.approx(stats.f.sf(f, 4, 32))


def test_friedman_knows_its_ends() -> None:
    same = friedman(np.ones((4, 3)))
    assert (same.chi_square, same.p) == (0, 1)
    always = friedman(np.tile([1.0, 2.0, 3.0], (6, 1)))
    assert always.f == np.inf
    assert always.p == pytest.approx(1 / 6**5), "that five blocks have the order of the first by chance"
    pair = friedman(np.tile([1.0, 2.0], (5, 1)))
    assert pair.p == pytest.approx(stats.binomtest(5, 5).pvalue), "of two encoders it is the sign test"
    assert friedman(np.tile([1.5, 1.5, 3.0], (4, 1))).p == pytest.approx(1 / 3**3)
    assert np.isnan(friedman(np.array([[1.0, 2.0]])).p)


@pytest.mark.parametrize(("encoders", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_published_table(encoders: int, q: float) -> None:
    # q(0.05) of table 5(a) in Demšar, Statistical comparisons of classifiers over multiple data sets, 2006.
    expected = q * np.sqrt(encoders * (encoders + 1) / (6 * 14))
    assert critical_difference(encoders, 14) == pytest.approx(expected, rel=5e-4)
    assert np.isnan(critical_difference(encoders, 1))


def test_a_rank_interval_holds_the_rank() -> None:
    resampled = np.random.default_rng(0).choice([1.5, 2.0, 2.5], 300)
    found = rank_interval(1.0, resampled)
    assert (found.low, found.high) == (1.0, 2.5)
    assert np.isnan(rank_interval(1.0, np.full(5, np.nan)).low)


def test_a_data_set_counts_once() -> None:
    names, table = block_means(np.array([[1.0, 2], [2, 1], [1, 2], [1, 2]]), ["nih", "vindr", "nih", "nih"])
    assert names == ["nih", "vindr"]
    np.testing.assert_array_equal(table, [[1, 2], [2, 1]])


def test_cliques_are_the_longest_runs_without_a_pair_that_differs() -> None:
    separated = np.zeros((5, 5), dtype=bool)
    for a, b in ((0, 3), (0, 4), (1, 4)):
        separated[a, b] = separated[b, a] = True
    assert cliques([0, 1, 2, 3, 4], separated) == [(0, 2), (1, 3), (2, 4)]
    assert cliques([0, 1, 2], np.zeros((3, 3), dtype=bool)) == [(0, 2)]
    assert cliques([0, 1], ~np.eye(2, dtype=bool)) == []
    # A middle pair that differs splits the run, even where its ends do not.
    inner = np.zeros((3, 3), dtype=bool)
    inner[0, 1] = inner[1, 0] = True
    assert cliques([0, 1, 2], inner) == [(1, 2)]
