"""Policies for the factor that multiplies cosines before a softmax: fixed (1/T), or learnt within bounds.

Guarantee: how a learnt number becomes the factor is always said (`exp`, `multiply`, `divide`), since released weights
differ in it and one read by another's rule is silently wrong. A bound holds the number itself, before the rule, and its
gradient passes at the bound, so that a number that has run out of its range can come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Float

ScalePolicy = Literal["exp", "multiply", "divide"]
"""exp: the number is the logarithm of the factor (CLIP, CT-CLIP); multiply: the factor itself (M3D-CLIP); divide: the
temperature (VELVET-Med, fVLM)."""


def clamped_scale(log_scale: Float[torch.Tensor, " 1"], low: float, high: float) -> Float[torch.Tensor, ""]:
    """Return exp(log_scale clamped to [low, high]) with the gradient of the unclamped exponent.

    The gradient passes at the bounds: MedCLIP clamps the stored parameter, not the graph.
    """
    return cosine_factor(log_scale, "exp", low, high)


def cosine_factor(
    number: Float[torch.Tensor, "*one"], policy: ScalePolicy, low: float | None = None, high: float | None = None
) -> Float[torch.Tensor, ""]:
    """Return the factor of cosines that a learnt number stands for.

    Args:
        number: One value.
        policy: How it is read.
        low: Lower bound of the number; None is none.
        high: Upper bound of the number; None is none.

    Raises:
        ValueError: An unknown policy.
    """
    if low is not None or high is not None:
        number = number + (number.detach().clamp(low, high) - number.detach())
    match policy:
        case "exp":
            return number.exp().squeeze()
        case "multiply":
            return number.squeeze()
        case "divide":
            return 1 / number.squeeze()
    raise ValueError(f"unknown policy of a scale: {policy!r}")
