"""Policies for the factor that multiplies cosines before a softmax: fixed (1/T), or learnt within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float


def clamped_scale(log_scale: Float[torch.Tensor, " 1"], low: float, high: float) -> Float[torch.Tensor, ""]:
    """Return exp(log_scale clamped to [low, high]) with the gradient of the unclamped exponent.

    The gradient passes at the bounds (MedCLIP clamps the stored parameter, not the graph), so that a scale that has run
    out of its range can come back.
    """
    clamped = log_scale + (log_scale.detach().clamp(low, high) - log_scale.detach())
    return clamped.exp().squeeze()
