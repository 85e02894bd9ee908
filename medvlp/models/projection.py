"""Projection from the width of a tower to the shared space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.schema import ProjectionConfig

if TYPE_CHECKING:
    from jaxtyping import Float


class Projection(nn.Module):
    """One linear map, or Linear - ReLU - Linear, then unit length.

    Args:
        width: Width of the tower's pooled vector.
        config: Output width, hidden width and bias.
    """

    def __init__(self, width: int, config: ProjectionConfig) -> None:
        super().__init__()
        if config.hidden is None:
            self.layers: nn.Module = nn.Linear(width, config.dim, bias=config.bias)
        else:
            first = nn.Linear(width, config.hidden, bias=config.bias)
            last = nn.Linear(config.hidden, config.dim, bias=config.bias)
            self.layers = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, pooled: Float[torch.Tensor, "b d"]) -> Float[torch.Tensor, "b e"]:
        """Return unit vectors, normalised in at least float32 also under autocast."""
        projected = self.layers(pooled)
        return functional.normalize(projected if projected.dtype == torch.float64 else projected.float(), dim=-1)
