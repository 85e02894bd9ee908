"""One vector of a volume from all scales of a Swin tower, as VoCo takes it.

Guarantee: the vector is a concatenation of means over places, from shallow to deep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float


class ScalePool(nn.Module):
    """Means over places of the five maps of a Swin tower, or of SwinUNETR's convolution blocks behind them.

    Args:
        width: Of the first map; each of the four stages doubles it.
        channels: Of the volume.
        of: stages: of the maps themselves, 31 widths. blocks: of the blocks behind the volume, the first three maps and
            the last (24 widths: VoCo's 1,152 at 48).

    Attributes:
        dim: Width of the vector.
    """

    def __init__(self, width: int, channels: int, of: Literal["blocks", "stages"]) -> None:
        super().__init__()
        self.blocks: nn.ModuleList | None = None
        self.dim = 31 * width
        if of == "blocks":
            shapes = [(channels, width), (width, width), (2 * width, 2 * width), (4 * width, 4 * width)]
            shapes.append((16 * width, 16 * width))
            self.blocks = nn.ModuleList(
                UnetrBasicBlock(3, given, made, kernel_size=3, stride=1, norm_name="instance", res_block=True)
                for given, made in shapes
            )
            self.dim = sum(made for _, made in shapes)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"], maps: list[Any]) -> Float[torch.Tensor, "b e"]:
        """Return the vector of a volume and its maps."""
        if self.blocks is not None:
            given = [pixels, *maps[:3], maps[-1]]
            maps = [block(part) for block, part in zip(self.blocks, given, strict=True)]
        return torch.cat([part.flatten(2).mean(2) for part in maps], dim=1)
