"""Intervals over several training draws."""

from __future__ import annotations

import numpy as np

from medvlp.bench.stats import _over_draws
from medvlp.metrics.bootstrap import interval


def test_an_interval_over_draws_covers_the_choice_of_draws() -> None:
    # Patients say nothing here: every draw scores the same in all resamples. What is left is the choice of draws, whose
    # mean over 4 of them has the known standard error of a mean of 4 with replacement.
    values = np.array([0.5, 0.6, 0.7, 0.9])
    resampled = _over_draws([np.full(4000, value) for value in values])
    assert abs(resampled.mean() - values.mean()) < 0.005
    assert abs(resampled.std() - values.std() / np.sqrt(4)) < 0.005
    bounds = interval(resampled, 0.05)
    assert bounds.low < 0.6 < 0.75 < bounds.high


def test_one_draw_keeps_its_resamples() -> None:
    values = np.random.default_rng(0).random(100)
    np.testing.assert_array_equal(_over_draws([values]), values)


def test_both_sides_of_a_pair_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    first = [rng.random(500) for _ in range(3)]
    second = [values + 0.125 for values in first]
    np.testing.assert_allclose(_over_draws(second) - _over_draws(first), 0.125)
