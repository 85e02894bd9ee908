"""Head of self-distillation: an MLP to a narrow unit vector, then cosines with prototypes (DINO, arXiv 2104.14294).

Guarantee: prototypes have unit length in the forward pass whatever the optimiser does to their parameter, so that the
outputs are cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float


class PrototypeHead(nn.Module):
    """Linear - GELU - Linear - GELU - Linear, unit length, prototypes.

    Args:
        dim: Width of the features.
        hidden: Of the hidden layers; DINOv2 has 2048.
        bottleneck: Of the unit vector; 256.
        prototypes: 65536 (DINOv2's smaller recipes); RAD-DINO's number is not published.
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n k"]:
        """Return the cosines with the prototypes."""
        unit = functional.normalize(self.layers(features), dim=-1)
        return functional.linear(unit, functional.normalize(self.prototypes, dim=-1))
