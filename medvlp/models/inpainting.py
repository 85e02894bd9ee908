"""Boxes of noise in a volume, and the decoder that fills them from the deepest map of a tower (Swin UNETR).

Guarantee: draws come from torch's global generator; a volume is decoded at its own size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


def cut_out(
    volumes: Float[torch.Tensor, "b c d h w"], share: float, sides: tuple[float, float]
) -> Float[torch.Tensor, "b c d h w"]:
    """Return volumes with normal noise in random boxes.

    As in the pre-training code of Swin UNETR (arXiv 2111.14791) boxes are drawn until their volumes, overlaps counted
    twice, are a share of the whole; here their number is what that takes on the average.

    Args:
        volumes: Normalised volumes.
        share: Sum of the volumes of all boxes, of the whole.
        sides: Smallest and largest side of a box, of that of the volume.
    """
    number = max(1, round(share / (sum(sides) / 2) ** 3))
    boxes, spans = (len(volumes), number), []
    for length in volumes.shape[2:]:
        extent = (sides[0] + (sides[1] - sides[0]) * torch.rand(boxes, device=volumes.device)) * length
        start = torch.rand(boxes, device=volumes.device) * (length - extent)
        at = torch.arange(length, device=volumes.device) + 0.5
        spans.append(((at > start[..., None]) & (at < (start + extent)[..., None])).to(volumes.dtype))
    inside = torch.einsum("bnd,bnh,bnw->bdhw", *spans) > 0
    return torch.where(inside[:, None], torch.randn_like(volumes), volumes)


class VolumeDecoder(nn.Module):
    """Convolution, instance norm, leaky ReLU and doubling, until the grid has the size of the volume.

    Args:
        width: Channels of the deepest map.
        grid: Its size.
        size: Of the volume.
        channels: Of the volume.

    Raises:
        UserError: The volume is not the grid doubled some times, or the grid is a single place.
    """

    def __init__(self, width: int, grid: tuple[int, ...], size: tuple[int, ...], channels: int) -> None:
        super().__init__()
        doublings = {math.log2(side / places) for side, places in zip(size, grid, strict=True)}
        if len(doublings) > 1 or not min(doublings).is_integer() or math.prod(grid) < 2:
            raise UserError(
                f"A map of {grid} does not become a volume of {size} by doubling.",
                "method.image",
                "Use a Swin tower with a patch of equal sides, and a volume of more than one place in its last stage.",
            )
        layers: list[nn.Module] = []
        for _ in range(int(min(doublings))):
            narrower = max(channels, width // 2)
            layers += [nn.Conv3d(width, narrower, 3, padding=1), nn.InstanceNorm3d(narrower), nn.LeakyReLU()]
            layers.append(nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False))
            width = narrower
        self.layers = nn.Sequential(*layers, nn.Conv3d(width, channels, 1))

    def forward(self, deepest: Float[torch.Tensor, "b w *g"]) -> Float[torch.Tensor, "b c d h w"]:
        """Return the volume of a map."""
        return self.layers(deepest)
