"""Fixed positions of grids of two and three axes."""

from __future__ import annotations

import numpy as np
import torch
from timm.layers import build_sincos2d_pos_embed

from medvlp.models.positions import grid_positions


def test_in_two_dimensions_positions_are_those_of_timm() -> None:
    assert torch.equal(grid_positions((3, 5), 16), build_sincos2d_pos_embed([3, 5], 16))


def test_in_three_dimensions_each_axis_has_its_own_waves() -> None:
    """Against numpy: a cell's row holds sines and cosines of its d, h and w, and zeros behind them."""
    grid, width = (2, 3, 4), 20
    table = grid_positions(grid, width).numpy()
    waves = 10_000.0 ** -(np.arange(3) / 3)
    for row, place in enumerate(np.ndindex(*grid)):
        expected = [part for axis in place for part in (np.sin(axis * waves), np.cos(axis * waves))]
        np.testing.assert_allclose(table[row], np.concatenate([*expected, [0, 0]]), atol=1e-6)
    assert len(np.unique(table.round(5), axis=0)) == len(table)
