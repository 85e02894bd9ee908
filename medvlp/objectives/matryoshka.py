"""Matryoshka representation learning: the first dimensions of a vector alone serve as a smaller vector.

Guarantee: an objective of unit vectors sees unit vectors at every prefix; with one prefix of the whole width nothing
changes. Weights multiply a sum over prefixes, not a mean, as in the released code (arXiv 2205.13147, equation 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from medvlp.objectives.terms import at_least_float32, unit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Scalar = Float[torch.Tensor, ""]
    Term = tuple[Scalar, Scalar]


def over_prefixes(
    objective: Callable[..., Term],
    vectors: Sequence[Float[torch.Tensor, "_ d"]],
    prefixes: Sequence[int],
    weights: Sequence[float] = (),
) -> Term:
    """Return the weighted sum of an objective over prefixes of its vectors, each brought to length 1 again.

    The count is that of the objective at one prefix.

    Args:
        objective: Takes as many vectors as are given and returns (value, count).
        vectors: Of the same width.
        prefixes: Numbers of leading dimensions.
        weights: One per prefix; empty is 1 each.
    """
    terms = [objective(*(unit(vector[:, :prefix]) for vector in vectors)) for prefix in prefixes]
    weights = weights or [1.0] * len(terms)
    value = torch.stack([weight * term for weight, (term, _) in zip(weights, terms, strict=True)]).sum()
    return value, terms[0][1]


class PrefixClassifier(nn.Module):
    """A linear classifier of every prefix; tied, the classifiers share the leading columns of one weight (MRL-E).

    Args:
        prefixes: Numbers of leading dimensions, rising; the last is the width of the features.
        classes: Number of classes.
        tied: Share weight and bias.
        bias: Whether there is one.
    """

    def __init__(self, prefixes: Sequence[int], classes: int, tied: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.prefixes = tuple(prefixes)
        widths = self.prefixes[-1:] if tied else self.prefixes
        self.classifiers = nn.ModuleList(nn.Linear(width, classes, bias=bias) for width in widths)

    def forward(self, features: Float[torch.Tensor, "b d"]) -> list[Float[torch.Tensor, "b k"]]:
        """Return the logits at each prefix; the prefix is not normalised."""
        tied = len(self.classifiers) < len(self.prefixes)
        logits = []
        for number, prefix in enumerate(self.prefixes):
            layer: Any = self.classifiers[0 if tied else number]
            logits.append(functional.linear(features[:, :prefix], layer.weight[:, :prefix], layer.bias))
        return logits


def prefix_cross_entropy(
    logits: Sequence[Float[torch.Tensor, "b k"]],
    target: Int[torch.Tensor, " b"],
    weights: Sequence[float] = (),
) -> Term:
    """Return the weighted sum over prefixes of the mean cross-entropy; a target of -1 is left out.

    Args:
        logits: At each prefix, see `PrefixClassifier`.
        target: Classes.
        weights: One per prefix; empty is 1 each.
    """
    known = target >= 0
    weights = weights or [1.0] * len(logits)
    value = logits[0].new_zeros((), dtype=at_least_float32(logits[0]).dtype)
    for weight, given in zip(weights, logits, strict=True):
        total = functional.cross_entropy(at_least_float32(given), target, reduction="sum", ignore_index=-1)
        value = value + weight * total / known.sum().clamp_min(1)
    return value, known.sum().float()
