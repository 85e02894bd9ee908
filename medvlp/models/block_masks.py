"""Which patches masked image modelling hides: rectangles, as in BEiT (arXiv 2106.08254), iBOT and DINOv2.

Guarantee: how many patches are hidden in a batch is a function of its size alone, so that ranks hide the same number.
Draws come from torch's global generator on the CPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool

SMALLEST_BLOCK = 4
"""Patches."""
LEAST_ASPECT = 0.3


def block_masks(
    images: int, grid: tuple[int, ...], shares: tuple[float, float], images_share: float
) -> Bool[torch.Tensor, "b p"]:
    """Return the hidden patches of each image.

    Args:
        images: Number of images.
        grid: Rows and columns of patches.
        shares: Least and largest share of the patches that is hidden where any are; spread evenly over the images.
        images_share: Share of the images in which patches are hidden, chosen at random.
    """
    masked = int(images * images_share)
    low, high = shares
    hidden = torch.zeros(images, *grid, dtype=torch.bool)
    for place, image in enumerate(torch.randperm(images)[:masked].tolist()):
        share = low + (high - low) * (place + 0.5) / masked
        _hide_blocks(hidden[image], round(share * math.prod(grid)))
    return hidden.flatten(1)


def _hide_blocks(mask: Bool[torch.Tensor, "g w"], number: int) -> None:
    """Hide rectangles until exactly `number` patches are hidden; of the last one the surplus stays shown."""
    rows, columns = mask.shape
    left = number
    while left > 0:
        area = SMALLEST_BLOCK + float(torch.rand(())) * max(0, left - SMALLEST_BLOCK)
        aspect = math.exp((2 * float(torch.rand(())) - 1) * -math.log(LEAST_ASPECT))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top = int(torch.randint(rows - height + 1, ()))
        first = int(torch.randint(columns - width + 1, ()))
        block = mask[top : top + height, first : first + width]
        shown = (~block).nonzero()[:left]
        block[shown[:, 0], shown[:, 1]] = True
        left -= len(shown)
