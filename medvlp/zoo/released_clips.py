"""Towers of clips of released checkpoints, on torchvision.

Guarantee: with the official weights a view gives the official features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.towers import ClipTowerConfig
from medvlp.config.volumes import ClipInputConfig
from medvlp.errors import UserError
from medvlp.models.feature_maps import as_map
from medvlp.models.vision_clip import MViT
from medvlp.types import Features
from medvlp.zoo.release import ClipImageConfig

if TYPE_CHECKING:
    from jaxtyping import Float


class ReleasedMViT(nn.Module):
    """MViT v2 S: the class token and the patches after the last norm.

    Args:
        config: Size of the clips, and views.

    Attributes:
        dim: Width of the pooled vector.
        view: Name of the view that `forward` takes by default.
    """

    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.config, self.view = config, next(iter(config.views))
        taken = ClipInputConfig(size=config.size, frames=config.frames)
        self.backbone = MViT(ClipTowerConfig(kind="video", family="mvit", input=taken))
        self.dim = self.backbone.width

    def forward(self, pixels: Float[torch.Tensor, "b 3 f h w"], view: str | None = None) -> Features:
        """Return the features of normalised frames in a view; None is `self.view`."""
        states, grid = self.backbone(pixels)[-1]
        tokens = states[:, 1:]
        pooled = states[:, 0] if self.config.views[view or self.view].pool == "cls" else tokens.mean(1)
        return Features(tokens, pooled, grid)

    def feature_maps(self, pixels: Float[torch.Tensor, "b 3 f h w"]) -> list[Float[torch.Tensor, "b d f h w"]]:
        """Return the map after each stage, the last one normed."""
        return [as_map(states[:, 1:], grid) for states, grid in self.backbone(pixels)]

    def check_size(self, *size: int) -> None:
        """Raise `UserError` unless frames have the size that the checkpoint was trained for."""
        if set(size) != {self.config.size}:
            raise UserError(
                f"The checkpoint takes frames of {self.config.size} pixels, not of {' x '.join(map(str, size))}.",
                "encoder",
                f"Take {self.config.size} pixels.",
            )
