"""Fixed sines and cosines of where the cells of a grid lie, in two or three dimensions.

Guarantee: in two dimensions the table is timm's, as MAE has it; in three each axis has a third of the width, so that
depth is told like height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from timm.layers import build_sincos2d_pos_embed
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

LONGEST_WAVE = 10_000.0


def grid_positions(
    grid: Sequence[int], width: int, device: torch.device | str | None = None
) -> Float[torch.Tensor, "p d"]:
    """Return the position of every cell, row-major over the grid.

    Args:
        grid: (h, w), or (d, h, w).
        width: Of the table; what does not divide by twice the axes is 0.
        device: Where.
    """
    where = torch.device("cpu") if device is None else torch.device(device)
    if len(grid) == 2:
        return build_sincos2d_pos_embed(list(grid), width, device=where)
    bands = width // (2 * len(grid))
    waves = LONGEST_WAVE ** -(torch.arange(bands, device=where) / bands)
    axes = torch.meshgrid(*(torch.arange(side, device=where) for side in grid), indexing="ij")
    parts = [axis.flatten()[:, None] * waves for axis in axes]
    table = torch.cat([wave for part in parts for wave in (part.sin(), part.cos())], dim=1)
    return functional.pad(table, (0, width - table.shape[1]))
