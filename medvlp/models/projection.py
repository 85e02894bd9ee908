"""Projection from the width of a tower to the shared space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.towers import ProjectionConfig
from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


class Projection(nn.Module):
    """One linear map, or Linear - [batch norm] - activation - Linear - [batch norm], then unit length.

    Args:
        width: Width of the tower's pooled vector.
        config: Output width, hidden layer and bias.
    """

    def __init__(self, width: int, config: ProjectionConfig) -> None:
        super().__init__()
        if config.hidden is None:
            self.layers: nn.Module = nn.Linear(width, config.dim, bias=config.bias)
        else:
            first = nn.Linear(width, config.hidden, bias=config.bias)
            last = nn.Linear(config.hidden, config.dim, bias=config.bias)
            hidden_norm = [nn.BatchNorm1d(config.hidden)] if config.batch_norm != "none" else []
            last_norm = [nn.BatchNorm1d(config.dim, affine=False)] if config.batch_norm == "both" else []
            activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
            self.layers = nn.Sequential(first, *hidden_norm, activation, last, *last_norm)

    def forward(self, features: Float[torch.Tensor, "b *l d"]) -> Float[torch.Tensor, "b *l e"]:
        """Return unit vectors of pooled vectors or of tokens, normalised in at least float32 also under autocast."""
        projected = self.unscaled(features)
        return functional.normalize(projected if projected.dtype == torch.float64 else projected.float(), dim=-1)

    def unscaled(self, features: Float[torch.Tensor, "b *l d"]) -> Float[torch.Tensor, "b *l e"]:
        """Return the vectors before they are brought to unit length, e.g. to average them."""
        return self.layers(features.reshape(-1, features.shape[-1])).unflatten(0, features.shape[:-1])


class UnitLength(nn.Module):
    """No projection: the tower's vector is the shared one, brought to unit length.

    Args:
        width: Width of the tower's vector.
        dim: Width of the shared space.

    Raises:
        UserError: They differ.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        if width != dim:
            raise UserError(
                f"A vector of {width} dimensions is compared with one of {dim}, without a projection between them.",
                "method.projection",
                "Give towers of one width, or a projection to the width of the other tower.",
            )

    def forward(self, features: Float[torch.Tensor, "b *l d"]) -> Float[torch.Tensor, "b *l d"]:
        """Return unit vectors, normalised in at least float32 also under autocast."""
        return functional.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
