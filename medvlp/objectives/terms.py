"""What every objective needs: numbers that do not overflow, a mean over the terms of all ranks, an empty term.

Guarantee: nothing here waits for the device; an empty term is exactly 0 with count 0 and sends gradients of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import all_reduce, world_size

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[torch.Tensor, ""]


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return float64 as it is, anything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit(tensor: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
    """Return vectors of length 1 in at least float32; a zero vector stays zero."""
    return functional.normalize(at_least_float32(tensor), dim=-1)


def count_of(number: int, like: torch.Tensor) -> Scalar:
    """Return a count on the device of `like`."""
    return torch.full((), float(number), device=like.device)


def nothing(*inputs: torch.Tensor) -> tuple[Scalar, Scalar]:
    """Return 0 with count 0, in the graph of the inputs (which may be empty, not infinite)."""
    zero = torch.stack([tensor.sum() * 0.0 for tensor in inputs]).sum()
    return zero, count_of(0, zero)


def mean_over_ranks(total: Scalar, number: Scalar) -> tuple[Scalar, Scalar]:
    """Return a sum of local terms as (value, count), scaled such that the mean over ranks is that over all terms.

    Args:
        total: Sum of this rank's terms, in the graph, 0 where there are none.
        number: How many they are.
    """
    everyone = number.detach().to(total.dtype, copy=True)
    all_reduce(everyone)
    return total * (world_size() / everyone.clamp_min(1.0)), number


def mean_of(terms: Sequence[tuple[Scalar, Scalar]]) -> tuple[Scalar, Scalar]:
    """Return the mean of the values and the sum of the counts."""
    values, counts = zip(*terms, strict=True)
    return torch.stack(values).mean(), torch.stack(counts).sum()
